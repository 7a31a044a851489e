"""`safetensors.safe_open`, over memory that is not copied."""

from __future__ import annotations

import operator
import os
from typing import Any

from . import _frameworks, _native
from .errors import InvalidIndex, Unsupported

_FRAMEWORKS = {
    "pt": "torch",
    "torch": "torch",
    "pytorch": "torch",
    "np": "numpy",
    "numpy": "numpy",
    "jax": "jax",
    "flax": "jax",
}


class safe_open:
    """Opens a file of tensors, or a directory of them, for one framework."""

    def __init__(
        self,
        filename: str | os.PathLike[str],
        framework: str,
        device: Any = "cpu",
        *,
        backend: Any = None,
    ) -> None:
        # How bytes are read is safetensors' choice of the same name, and here nobody's: they are mapped.
        del backend
        self._framework = _known(framework)
        self._device = _device(self._framework, device)
        self._tensors = _opened(filename, self._device)

    def keys(self) -> list[str]:
        """The names of all tensors, sorted."""
        return self._tensors.keys()

    def offset_keys(self) -> list[str]:
        """The names of all tensors, as they lie in the file."""
        return self._tensors.offset_keys()

    def metadata(self) -> dict[str, str] | None:
        """What the file says of itself, or None."""
        return self._tensors.metadata() or None

    def get_tensor(self, name: str) -> Any:
        """A tensor of the framework. It lies in the file's memory unless it is for another device."""
        return self._convert(self._tensors[name])

    def get_tensors(self) -> dict[str, Any]:
        """All tensors of the file by their names."""
        return {name: self._convert(self._tensors[name]) for name in self._tensors.offset_keys()}

    def get_slice(self, name: str) -> Slice:
        """A tensor of which parts are taken."""
        return Slice(self._tensors[name], self._framework, self._device)

    def __enter__(self) -> safe_open:
        return self

    def __exit__(self, *raised: object) -> None:
        self._tensors.close()

    def _convert(self, tensor):
        if tensor.device != "cpu":
            return tensor.torch()
        return _to_device(_to_framework(tensor, self._framework), self._framework, self._device)


class Slice:
    """A tensor of which parts are taken, as by `tensor[1:3, ..., 0]`. A part is a view: nothing is read that is not used.

    Where the tensor itself must be copied, as `Tensor` says, that happens once.
    """

    def __init__(self, tensor: _native.Tensor, framework: str, device: Any) -> None:
        self._tensor = tensor
        self._framework = framework
        self._device = device
        self._whole = None

    def get_shape(self) -> list[int]:
        """The shape of the whole tensor."""
        return list(self._tensor.shape)

    def get_dtype(self) -> str:
        """The type as safetensors writes it."""
        return self._tensor.dtype

    def __getitem__(self, index: Any) -> Any:
        if self._framework != "torch":
            # torch has its own words for what is wrong; numpy and JAX would take lists too, as copies.
            index = _checked(index, self._tensor)
        if self._whole is None:
            # Kept: of a tensor that is copied because of where it lies, each part would cost a copy of the whole.
            # In the processor's memory, and a part is copied alone: nobody needs the whole of it on a device.
            self._whole = _on_host(self._tensor, self._framework)
        part = self._whole[index]
        return _to_device(part, self._framework, self._device)


def _known(framework: object) -> str:
    if not isinstance(framework, str) or framework not in _FRAMEWORKS:
        raise Unsupported(f"framework {framework} is invalid: it is one of {', '.join(_FRAMEWORKS)}")
    return _FRAMEWORKS[framework]


def _device(framework, device):
    """The device as the framework knows it; None for the processor's memory."""
    if device is None:
        return None
    if framework != "torch":
        if device != "cpu":
            raise Unsupported(f"Device {device} is not supported for framework {framework}")
        return None
    import torch

    try:
        known = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise Unsupported(f"device {device} is invalid: {str(error).splitlines()[0]}") from None
    if known.type not in ("cpu", "meta", "mps") and known.index is None:
        # As safetensors has it: the first of them, whichever is current.
        known = torch.device(known.type, 0)
    return None if known.type == "cpu" else known


def _opened(filename, device):
    """On a CUDA device by its driver, where that can be; torch copies to all others."""
    if getattr(device, "type", None) == "cuda":
        try:
            return _native.open(filename, device=device)
        except Unsupported:
            # No driver of its own kind, as on AMD's devices, which torch calls so too; or torch says what is wrong.
            pass
    return _native.open(filename)


def _on_host(tensor, framework):
    return _frameworks.to_torch(tensor) if tensor.device != "cpu" else _to_framework(tensor, framework)


def _to_framework(tensor, framework):
    return getattr(tensor, framework)()


def _to_device(array, framework, device):
    if framework == "jax":
        import jax

        # On a machine with accelerators, code expects arrays on the first of them.
        default = jax.devices()[0]
        return array if default.platform == "cpu" else jax.device_put(array, default)
    return array if device is None else array.to(device)


def _checked(index, tensor):
    """The index as a tuple that numpy and JAX take without a copy, or an error that says what is wrong."""
    shape = tensor.shape
    parts = index if isinstance(index, tuple) else (index,)
    dimensions = sum(part is not Ellipsis for part in parts)
    if len(parts) - dimensions > 1:
        raise _invalid(tensor, "Only one ellipsis (...) is allowed in slice index")
    if dimensions > len(shape):
        raise _invalid(tensor, f"shape {list(shape)} has fewer dimensions than the index {index!r}")
    checked, at = [], 0
    for position, part in enumerate(parts):
        if part is Ellipsis:
            at += len(shape) - dimensions
            checked.append(part)
            continue
        checked.append(_checked_part(part, position, at, tensor))
        at += 1
    if len(parts) == dimensions:
        # Of a single element too, numpy shall give an array over the memory, not a number.
        checked.append(Ellipsis)
    return tuple(checked)


def _checked_part(part, position, dimension, tensor):
    size = tensor.shape[dimension]
    if isinstance(part, slice):
        try:
            step = part.indices(size)[2]
        except (TypeError, ValueError) as error:
            raise _invalid(tensor, f"Unsupported slice at position {position}: {error}") from None
        if step < 0:
            raise _invalid(tensor, f"Slice step must be a positive integer, got {step}")
        return part
    try:
        number = operator.index(part)
    except TypeError:
        problem = f"Unsupported slice index at position {position}: expected slice, int, or ellipsis"
        raise _invalid(tensor, problem) from None
    if not -size <= number < size:
        raise _invalid(tensor, f"index {number} out of bounds for tensor dimension #{dimension} of size {size}")
    return number


def _invalid(tensor, problem):
    return InvalidIndex(f"{tensor.file}: {problem} (tensor {tensor.name!r})")
