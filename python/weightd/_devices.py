"""Devices, as `weightd.open(..., device=...)` takes them, and arrays of JAX on those that are JAX's."""

import re
import sys

from ._frameworks import to_numpy
from .errors import InvalidArgument, Unsupported

#: Most bytes of shared memory that are registered with a CUDA driver at once. Registering takes longer than copying where pages
#: are of 4 KiB, so a device is not to wait for more than that before its first copy.
REGISTERED_AT_ONCE_BYTES = 256 << 20
#: Most bytes that are on their way to a CUDA device at once, unless a tensor has more. Who runs ahead of the copies would fill
#: the device with tensors that nobody has used yet.
IN_FLIGHT_BYTES = 512 << 20

_WORD = re.compile(r"(cpu|cuda|gpu|tpu|jax)(?::(\d{1,6}))?")


def known(device):
    """Who serves a device, and which one it is to them: nobody for the processor's memory."""
    if _root(device) == "torch":
        return _torch_device(device)
    if _root(device) in ("jax", "jaxlib"):
        return "jax", device
    word = _WORD.fullmatch(device) if isinstance(device, str) else None
    if word is None:
        raise _invalid(device)
    platform, number = word[1], None if word[2] is None else int(word[2])
    if platform == "cpu":
        return "cpu", None
    if platform == "cuda":
        return "cuda", _current() if number is None else number
    return "jax", _of_jax(device, None if platform == "jax" else platform, number or 0)


def to_jax(tensor, device):
    """Hands memory of the processor to JAX, which holds it until it has copied it."""
    import jax

    return jax.device_put(to_numpy(tensor), device)


def jax_cuda(number):
    """What JAX calls a CUDA device."""
    return _of_jax(f"cuda:{number}", "cuda", number)


def _root(device):
    return type(device).__module__.split(".")[0]


def _torch_device(device):
    kind = getattr(device, "type", None)
    if kind == "cpu":
        return "cpu", None
    if kind == "cuda":
        return "cuda", _current() if device.index is None else device.index
    raise _invalid(device)


def _current():
    """The CUDA device that torch uses, as its own functions take "cuda"; the first one where torch does not use any yet."""
    torch = sys.modules.get("torch")
    return torch.cuda.current_device() if torch is not None and torch.cuda.is_initialized() else 0


def _of_jax(device, platform, number):
    try:
        import jax
    except ImportError as error:
        raise Unsupported(f"device {device}: JAX cannot be imported ({error}); install it, or name a CUDA device") from None
    try:
        devices = jax.devices(platform) if platform else jax.devices()
    except RuntimeError as error:
        raise Unsupported(f"device {device}: JAX has none here: {str(error).splitlines()[0]}") from None
    if number >= len(devices):
        raise Unsupported(f"device {device}: JAX has {len(devices)} here: {', '.join(map(str, devices))}")
    return devices[number]


def _invalid(device):
    return InvalidArgument(
        f"device={device!r} is none: it is None, 'cpu', 'cuda', 'cuda:1', 'tpu', 'gpu', 'tpu:1', 'jax', a torch.device of the "
        "processor or of CUDA, a jax.Device, or a Sharding"
    )
