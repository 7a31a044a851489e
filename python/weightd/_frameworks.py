"""Tensors as the frameworks have them.

Frameworks learn new types in their own time: DLPack's numbers for 8-bit floats are known to few. So where it is not sure that
they know a type, they are given integers of its size, which all of them take, and asked to see them as what they are. Nothing
is copied by that.
"""

from .errors import Unsupported

# What is called in torch and in ml_dtypes as here, only in lower case, is not listed.
_TORCH = {
    "BOOL": "bool",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "BF16": "bfloat16",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",
}
_NUMPY = {
    "BOOL": "?",
    "U8": "u1",
    "U16": "<u2",
    "U32": "<u4",
    "U64": "<u8",
    "I8": "i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    "C64": "<c8",
}
_ML_DTYPES = {
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
# JAX uses memory in place from there on, and copies what lies elsewhere.
_JAX_ALIGNMENT = 64


def to_torch(tensor):
    import torch

    # Asked first: there are no integers of a type that packs elements.
    dtype = torch_type(tensor, torch)
    return torch.from_dlpack(tensor._integers()).view(dtype)


def torch_type(tensor, torch):
    """What torch calls the type of a tensor."""
    dtype = getattr(torch, _TORCH.get(tensor.dtype, ""), None)
    if dtype is None:
        raise _unsupported(tensor, f"torch {torch.__version__}")
    # Of F4 two elements are a byte, and torch counts bytes.
    if tensor.dtype == "F4" and (not tensor.shape or tensor.shape[-1] % 2):
        raise _unsupported(tensor, "torch, where its last dimension is odd")
    return dtype


def to_numpy(tensor):
    import numpy

    dtype = _numpy_type(tensor, numpy)
    return numpy.asarray(tensor._integers()).view(dtype)


def to_array(integers, own_type, dtype, copy):
    """What numpy makes of a tensor, which it is given as integers: of its own type, or of the one that somebody asks for."""
    import numpy

    array = numpy.asarray(integers).view(own_type)
    if dtype is not None and array.dtype != dtype:
        if copy is False:
            raise ValueError(f"an array of {dtype} would be a copy of one of {array.dtype}")
        return array.astype(dtype)
    return array.copy() if copy else array


def _numpy_type(tensor, numpy):
    if tensor.dtype in _NUMPY:
        return numpy.dtype(_NUMPY[tensor.dtype])
    if tensor.dtype not in _ML_DTYPES:
        raise _unsupported(tensor, "numpy")
    try:
        import ml_dtypes
    except ImportError:
        raise _unsupported(tensor, "numpy without the package ml_dtypes") from None
    dtype = getattr(ml_dtypes, _ML_DTYPES[tensor.dtype], None)
    if dtype is None:
        raise _unsupported(tensor, f"ml_dtypes {ml_dtypes.__version__}")
    return numpy.dtype(dtype)


def to_jax(tensor):
    import jax

    array = to_numpy(tensor)
    # Types that JAX would narrow (64 bits, unless it is told to keep them) must go through its own conversion, and so
    # must what it would copy anyway.
    narrowed = jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype
    in_place = array.flags.c_contiguous and array.ctypes.data % _JAX_ALIGNMENT == 0
    if not narrowed and array.size and in_place:
        try:
            return jax.dlpack.from_dlpack(tensor)
        except (AttributeError, NotImplementedError, TypeError, ValueError, RuntimeError):
            # Older ones know fewer types, or take capsules only.
            pass
    return jax.device_put(array, jax.devices("cpu")[0])


def _unsupported(tensor, by):
    return Unsupported(
        f"{tensor.file}: the tensor {tensor.name!r} is {tensor.dtype}, a type unknown to {by}; raw() gives its bytes"
    )
