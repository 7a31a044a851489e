import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Optional, final

__all__ = ["Tensor", "Tensors", "open"]

def open(
    path: str | os.PathLike[str],
    *,
    verified: bool = False,
    agent: str | os.PathLike[str] | Literal[False] | None = None,
    slices: Mapping[str, tuple[int, int, int] | None] | None = None,
    names: Callable[[str], bool] | Iterable[str] | None = None,
    stream: bool | int | str | None = None,
    device: Any = None,
) -> Tensors:
    """Opens a .safetensors file, the directory of a model, or a URI. Nothing of the tensors is read.

    In a volume, and for a URI, they come from the agent in shared memory. Of a path without an agent the files are mapped.
    `agent` is the agent's socket, instead of the one that is found; False asks none. With `verified`, a tensor in shared
    memory is used only when its file is known to be what the origin has.

    `slices` says which parts of tensors are needed, as a rank of a tensor-parallel server needs them:
    `{"*.norm.weight": None, "*.q_proj.weight": (0, rank, ranks)}` cuts along dimension 0 into `ranks` equal parts and takes
    one; None leaves a tensor whole. Of several patterns that fit a name the first counts; what none fits is whole.

    `names` says which tensors are needed: a function of a name, or names and patterns. There are no others then, and an agent
    brings no others.

    With `stream`, tensors come through a ring of that many bytes ("256MiB"; True leaves it to the agent): each has memory from
    when it is used until the last array over it is gone, so that a model needs no more than that at once. It needs an agent;
    without one files are mapped, which takes no memory either.

    `device` says where tensors are given out: "cuda", "cuda:1" or a torch.device, to which `Tensor.torch` copies; "tpu", "gpu:1",
    "jax", a jax.Device or a Sharding, to which `Tensor.jax` does. One that is not there is told before any agent is asked.
    """

@final
class Tensors:
    """The tensors of a model by their names. Closing it leaves tensors that were given out as they are."""

    @property
    def path(self) -> Path | str:
        """What was opened: a path, or a URI as text."""

    @property
    def files(self) -> list[Path] | list[str]:
        """The files that the tensors are in."""

    @property
    def how(self) -> str:
        """How the tensors came here: "shared memory", "stream" or "mapped files"."""

    @property
    def why(self) -> Optional[str]:
        """Why they are not in shared memory; None when they are."""

    @property
    def device(self) -> Any:
        """Where tensors are given out: "cpu", "cuda:0", or what JAX was to put them on."""

    @property
    def transfer(self) -> Optional[str]:
        """How they get there: "registered memory", "staging buffers", "jax.device_put"; None in the processor's memory.

        It may turn from the first into the second when the driver refuses to register more.
        """

    @property
    def transfer_why(self) -> Optional[str]:
        """Why through buffers; None where they are not."""

    def keys(self) -> list[str]:
        """All names, sorted."""

    def offset_keys(self) -> list[str]:
        """All names, as the tensors lie in their files: the order in which a stream brings them, so the fast one."""

    def values(self) -> list[Tensor]: ...
    def items(self) -> list[tuple[str, Tensor]]: ...
    def metadata(self) -> dict[str, str]:
        """What the files say of themselves, but for what they contradict each other in."""

    def wait(self, names: Optional[list[str]] = None, *, verified: Optional[bool] = None) -> None:
        """Waits until the tensors of these names, or all, may be used without waiting; the agent brings these first.

        With `verified` it waits until they are known to be what the origin has, and raises if one that was used before is not.
        By default it does so where they were opened with `verified`. Mapped files wait for their bytes as they are read, and
        never here. Nor does a stream, which brings the tensors in this order from now on.
        """

    def close(self) -> None: ...
    def __len__(self) -> int: ...
    def __contains__(self, name: object, /) -> bool: ...
    def __iter__(self) -> Iterator[str]: ...
    def __getitem__(self, name: str, /) -> Tensor: ...
    def __enter__(self) -> Tensors: ...
    def __exit__(self, *raised: object) -> None: ...

@final
class Tensor:
    """A tensor in this process's memory, which lives as long as the last array over it.

    Whatever uses the memory of a tensor waits until an agent has brought it, while other threads run.
    The memory may be written to: pages that are written to become this process's own.

    Of a stream it is the last array that the memory lives as long as, not this. Using it again while there is an array gives
    the same memory, and later has it come again, without what was written to it.
    """

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str:
        """The type as safetensors writes it: "BF16", "F8_E4M3"."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the slice that was asked for, as everything here."""

    @property
    def nbytes(self) -> int: ...
    @property
    def file(self) -> Path | str:
        """The file it is in."""

    @property
    def device(self) -> Any:
        """Where it is given out, as of `Tensors`."""

    @property
    def ready(self) -> bool:
        """Whether it may be used without waiting. Of mapped files nobody knows, so they are."""

    def raw(self) -> Tensor:
        """Its bytes: a tensor of one dimension and the type "U8" over the same memory.

        It is a copy only where the tensor does not lie on a multiple of its element, or is a slice whose elements do not follow
        each other.
        """

    def torch(self) -> Any:
        """A torch tensor over the same memory, of every type that this torch has.

        Opened for a CUDA device: a new tensor there, whose copy may still go on; work on torch's current stream waits for it.
        """

    def numpy(self) -> Any:
        """A numpy array over the same memory; brain and 8-bit floats by the package ml_dtypes.

        Always in the processor's memory, whatever the device.
        """

    def jax(self) -> Any:
        """A JAX array, over the same memory where that begins on a multiple of 64 bytes.

        A slice whose elements do not follow each other is copied, because JAX has no such arrays. Opened for a device, it is
        there.
        """

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """Not of a stream, where numpy asks `__array__`."""

    def __array__(self, dtype: Any = None, copy: Optional[bool] = None) -> Any: ...
    def __dlpack__(
        self,
        *,
        stream: Optional[Any] = None,
        max_version: Optional[tuple[int, int]] = None,
        dl_device: Optional[tuple[int, int]] = None,
        copy: Optional[bool] = None,
    ) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

def _settle() -> None:
    """Waits for copies to devices that are on their way, before the process ends."""
