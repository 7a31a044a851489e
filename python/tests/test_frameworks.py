"""Tensors as frameworks have them: run.py is told which by the variable FRAMEWORK."""

import gc
import os
import warnings

import models
import weightd

FRAMEWORK = os.environ["FRAMEWORK"]
#: What each calls the types that all of its versions have.
COMMON = {
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "F16": "float16",
    "I32": "int32",
    "F32": "float32",
    "BOOL": "bool",
    "BF16": "bfloat16",
    "C64": "complex64",
}
LATER = {
    "U16": "uint16",
    "U32": "uint32",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
#: JAX has these only where it was asked for them.
WIDE = {"I64": "int64", "F64": "float64"}

if FRAMEWORK == "torch":
    import torch

    def address(array):
        return array.data_ptr()

    def contents(array):
        return bytes(array.contiguous().reshape(-1).view(torch.uint8).tolist()) if array.numel() else b""

    def has(name):
        return hasattr(torch, name)

    def name(array):
        return str(array.dtype).removeprefix("torch.")

else:
    import numpy

    if FRAMEWORK == "jax":
        import jax

    def address(array):
        return array.unsafe_buffer_pointer() if FRAMEWORK == "jax" else array.ctypes.data

    def contents(array):
        return numpy.asarray(array).tobytes()

    def has(name):
        return True

    def name(array):
        return str(array.dtype)


def taken(tensor):
    return getattr(tensor, FRAMEWORK)()


class Frameworks(models.WithDirectory):
    def setUp(self):
        super().setUp()
        # Sixteen elements of the widest type are 128 bytes: each begins on 64, but for those of less than four bytes.
        self.path = models.write(self.at("x.safetensors"), models.every_type((8, 16)), pad=64)
        self.tensors = weightd.open(self.path)

    def test_every_type_is_taken_without_a_copy(self):
        seeds = {name: seed for seed, name in enumerate(models.every_type())}
        for dtype, called in {**COMMON, **LATER, **({} if FRAMEWORK == "jax" else WIDE)}.items():
            tensor = self.tensors[f"layer.{dtype}"]
            if not has(called):
                self.refuses(weightd.Unsupported, [tensor.name, dtype, FRAMEWORK], taken, tensor)
                continue
            array = taken(tensor)
            self.assertEqual((name(array), tuple(array.shape)), (called, (8, 16)))
            self.assertEqual(address(array), tensor.__array_interface__["data"][0], dtype)
            self.assertEqual(contents(array), models.content(dtype, (8, 16), seeds[tensor.name]), dtype)

    def test_packed_types_are_refused_by_name(self):
        for dtype in ("F6_E2M3", "F6_E3M2", "F4"):
            tensor = self.tensors[f"layer.{dtype}"]
            if dtype == "F4" and FRAMEWORK == "torch" and has("float4_e2m1fn_x2"):
                self.assertEqual(tuple(taken(tensor).shape), (8, 8))
            else:
                self.refuses(weightd.Unsupported, [tensor.name, dtype, "raw()"], taken, tensor)

    def test_scalars_and_empty_tensors(self):
        path = models.write(self.at("y.safetensors"), {"s": ("F32", ()), "z": ("F32", (2, 0, 3)), "b": ("BF16", (0,))})
        tensors = weightd.open(path)
        self.assertEqual(contents(taken(tensors["s"])), models.content("F32", ()))
        for each in tensors.values():
            self.assertEqual(tuple(taken(each).shape), each.shape)

    def test_the_mapping_lives_as_long_as_the_array(self):
        array = taken(self.tensors["layer.F32"])
        self.tensors = None
        self.assertTrue(models.is_mapped(self.path))
        before = contents(array)
        os.unlink(self.path)
        self.assertEqual(contents(array), before)
        del array
        gc.collect()
        self.assertFalse(models.is_mapped(self.path))

    def test_misaligned_tensors_are_right(self):
        path = models.write(self.at("y.safetensors"), {"odd": ("U8", (3,)), "x": ("F32", (5,)), "h": ("BF16", (5,))})
        tensors = weightd.open(path)
        for seed, each in enumerate(["x", "h"], 1):
            self.assertEqual(contents(taken(tensors[each])), models.content(tensors[each].dtype, (5,), seed))

    def test_the_framework_takes_tensors_by_itself(self):
        tensor = self.tensors["layer.F32"]
        if FRAMEWORK == "torch":
            array = torch.from_dlpack(tensor)
            half = torch.from_dlpack(self.tensors["layer.BF16"])
            self.assertEqual(half.dtype, torch.bfloat16)
        elif FRAMEWORK == "jax":
            array = jax.dlpack.from_dlpack(tensor)
            self.assertEqual(name(jax.dlpack.from_dlpack(self.tensors["layer.BF16"])), "bfloat16")
        else:
            array = numpy.from_dlpack(tensor)
        self.assertEqual(address(array), tensor.__array_interface__["data"][0])

    def test_what_is_written_stays_here(self):
        if FRAMEWORK == "jax":
            # Its arrays are not written to.
            return
        before = contents(taken(weightd.open(self.path)["layer.F32"]))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            array = taken(self.tensors["layer.F32"])
            array[:] = 3
        self.assertNotEqual(contents(array), before)
        self.assertEqual(contents(taken(weightd.open(self.path)["layer.F32"])), before)
