"""The capsules of `__dlpack__`, read as a consumer in C reads them."""

import ctypes

import models
import numpy
import weightd

#: Code and bits of each type, from dlpack.h 1.1.
TYPES = {
    "BOOL": (6, 8),
    "I8": (0, 8),
    "I16": (0, 16),
    "I32": (0, 32),
    "I64": (0, 64),
    "U8": (1, 8),
    "U16": (1, 16),
    "U32": (1, 32),
    "U64": (1, 64),
    "F16": (2, 16),
    "F32": (2, 32),
    "F64": (2, 64),
    "BF16": (4, 16),
    "C64": (5, 64),
    "F8_E4M3": (10, 8),
    "F8_E4M3FNUZ": (11, 8),
    "F8_E5M2": (12, 8),
    "F8_E5M2FNUZ": (13, 8),
    "F8_E8M0": (14, 8),
}


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("dimensions", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("offset", ctypes.c_uint64),
    ]


class Legacy(ctypes.Structure):
    _fields_ = [("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


class Versioned(ctypes.Structure):
    _fields_ = [
        ("version", ctypes.c_uint32 * 2),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    ]


def inside(capsule, name, kind):
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return kind.from_address(get(capsule, name))


def legacy(capsule):
    return inside(capsule, b"dltensor", Legacy)


def versioned(capsule):
    return inside(capsule, b"dltensor_versioned", Versioned)


class Dlpack(models.WithDirectory):
    def setUp(self):
        super().setUp()
        self.path = models.write(self.at("x.safetensors"), models.every_type(), pad=64)
        self.tensors = weightd.open(self.path)

    def test_every_type_has_its_number(self):
        self.assertEqual(sorted(TYPES), sorted(models.WHOLE))
        for dtype, (code, bits) in TYPES.items():
            tensor = self.tensors[f"layer.{dtype}"]
            for capsule, read in [
                (tensor.__dlpack__(), legacy),
                (tensor.__dlpack__(max_version=(0, 9)), legacy),
                (tensor.__dlpack__(max_version=(1, 0)), versioned),
                (tensor.__dlpack__(max_version=(2, 0)), versioned),
            ]:
                found = read(capsule).tensor
                self.assertEqual((found.code, found.bits, found.lanes), (code, bits, 1), dtype)
                self.assertEqual(found.data, tensor.__array_interface__["data"][0])
                self.assertEqual((found.offset, list(found.device)), (0, [1, 0]))
                self.assertEqual((found.dimensions, found.shape[:2], found.strides[:2]), (2, [3, 4], [4, 1]))

    def test_a_version_is_what_the_consumer_can_read(self):
        capsule = self.tensors["layer.F32"].__dlpack__(max_version=(1, 0))
        self.assertEqual(list(versioned(capsule).version), [1, 1])
        # Neither read-only nor a copy.
        self.assertEqual(versioned(capsule).flags, 0)

    def test_a_copy_is_made_for_whoever_asks(self):
        tensor = self.tensors["layer.F32"]
        capsule = tensor.__dlpack__(max_version=(1, 0), copy=True)
        self.assertEqual(versioned(capsule).flags, 2)
        self.assertNotEqual(versioned(capsule).tensor.data, tensor.__array_interface__["data"][0])
        ctypes.memset(versioned(capsule).tensor.data, 255, tensor.nbytes)
        self.assertNotIn(b"\xff", tensor.numpy().tobytes())
        self.assertEqual(versioned(tensor.__dlpack__(max_version=(1, 0), copy=False)).flags, 0)

    def test_what_cannot_be_had_is_a_buffer_error_that_names_the_tensor(self):
        tensor = self.tensors["layer.F32"]
        words = ["layer.F32", self.path]
        self.refuses(BufferError, [*words, "streams"], lambda: tensor.__dlpack__(stream=1))
        self.refuses(BufferError, [*words, "(2, 0)"], lambda: tensor.__dlpack__(dl_device=(2, 0)))
        for dtype in ("F4", "F6_E2M3", "F6_E3M2"):
            packed = self.tensors[f"layer.{dtype}"]
            self.refuses(BufferError, [dtype, "raw()"], packed.__dlpack__)
            self.refuses(BufferError, [dtype, "raw()"], numpy.asarray, packed)
            self.assertEqual(packed.raw().shape, (packed.nbytes,))
        self.assertEqual(tensor.__dlpack_device__(), (1, 0))
        self.assertIsNotNone(tensor.__dlpack__(stream=None, dl_device=(1, 0), max_version=None, copy=None))

    def test_scalars_and_empty_tensors(self):
        path = models.write(self.at("y.safetensors"), {"s": ("F32", ()), "z": ("F32", (2, 0, 3)), "v": ("F32", (5,))})
        for name, shape, strides in [("s", [], []), ("z", [2, 0, 3], [3, 3, 1]), ("v", [5], [1])]:
            found = legacy(capsule := weightd.open(path)[name].__dlpack__()).tensor
            self.assertEqual(found.dimensions, len(shape))
            self.assertEqual((found.shape[: len(shape)], found.strides[: len(shape)]), (shape, strides))
            del capsule
