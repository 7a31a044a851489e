"""torch tensors on a CUDA device: torch has the memory, and the copy is made on a stream that torch does not know of."""

import atexit

from . import _native
from ._frameworks import torch_type
from .errors import Unsupported

# The driver ends with the process, and copies that are in it then could not.
atexit.register(_native._settle)


class Torch:
    """What is asked of torch for one device. Everything here that torch does only where it has CUDA is in this class."""

    def __init__(self, number):
        import torch

        self._torch = torch
        self.device = torch.device("cuda", number)

    def empty(self, shape, dtype):
        """A tensor on the device, with whatever its memory holds."""
        return self._torch.empty(shape, dtype=dtype, device=self.device)

    def allocate(self, shape, dtype, stream):
        """The same for a stream: torch gives it memory that was used on that stream last, or that nobody uses any more."""
        cuda = self._torch.cuda
        with cuda.stream(cuda.ExternalStream(stream, device=self.device)):
            return self.empty(shape, dtype)

    def current(self):
        """The stream on which the caller's work goes."""
        return self._torch.cuda.current_stream(self.device)

    def lend(self, tensor, stream):
        """Has torch know that memory is used on another stream than it was allocated for."""
        tensor.record_stream(stream)


def to_torch(tensor, number):
    """A new tensor on the device. The copy goes on when this returns; what is done with it on torch's stream waits for it."""
    try:
        import torch
    except ImportError as error:
        raise Unsupported(
            f"{tensor.file}: the tensor {tensor.name!r} is for a CUDA device, whose memory torch has, and torch cannot be imported "
            f"({error}); install it, or use jax()"
        ) from None
    try:
        there = Torch(number)
        current = there.current()
    except (AssertionError, RuntimeError) as error:
        # As a torch without CUDA says it.
        raise Unsupported(f"device cuda:{number}: torch {torch.__version__} cannot use it: {str(error).splitlines()[0]}") from None
    dtype, pairs = torch_type(tensor, torch), tensor.dtype == "F4"
    shape = (*tensor.shape[:-1], tensor.shape[-1] // 2) if pairs else tensor.shape
    if not tensor.nbytes:
        return there.empty(shape, dtype)
    allocated = None

    def allocate(stream):
        nonlocal allocated
        # Of F4 torch makes none by itself in all of its versions, and sees bytes as such.
        allocated = there.allocate(shape, torch.uint8 if pairs else dtype, stream)
        return allocated.data_ptr(), current.cuda_stream

    tensor._upload(allocate)
    there.lend(allocated, current)
    return allocated.view(dtype) if pairs else allocated


def capsule(tensor, stream, max_version):
    """A torch tensor as DLPack has it, for consumers that say what they can read and for those that do not."""
    if max_version is not None:
        try:
            return tensor.__dlpack__(stream=stream, max_version=max_version)
        except TypeError:
            # A torch that knows of no versions gives a capsule that all consumers read.
            pass
    return tensor.__dlpack__(stream=stream)
