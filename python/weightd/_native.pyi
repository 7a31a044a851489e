import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional, final

__all__ = ["Tensor", "Tensors", "open"]

def open(path: str | os.PathLike[str]) -> Tensors:
    """Opens a .safetensors file, or the directory of a model. Nothing of the tensors is read."""

@final
class Tensors:
    """The tensors of a model by their names. Closing it leaves tensors that were given out as they are."""

    @property
    def path(self) -> Path: ...
    @property
    def files(self) -> list[Path]:
        """The files that the tensors are in."""

    @property
    def how(self) -> str:
        """How the tensors came here: "mapped files"."""

    def keys(self) -> list[str]:
        """All names, sorted."""

    def offset_keys(self) -> list[str]:
        """All names, as the tensors lie in their files."""

    def values(self) -> list[Tensor]: ...
    def items(self) -> list[tuple[str, Tensor]]: ...
    def metadata(self) -> dict[str, str]:
        """What the files say of themselves, but for what they contradict each other in."""

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

    The memory may be written to: pages that are written to become this process's own.
    """

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str:
        """The type as safetensors writes it: "BF16", "F8_E4M3"."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def file(self) -> Path:
        """The file it is in."""

    def raw(self) -> Tensor:
        """Its bytes: a tensor of one dimension and the type "U8" over the same memory.

        It is a copy only where the tensor does not lie on a multiple of its element.
        """

    def torch(self) -> Any:
        """A torch tensor over the same memory, of every type that this torch has."""

    def numpy(self) -> Any:
        """A numpy array over the same memory; brain and 8-bit floats by the package ml_dtypes."""

    def jax(self) -> Any:
        """A JAX array, over the same memory where that begins on a multiple of 64 bytes."""

    @property
    def __array_interface__(self) -> dict[str, Any]: ...
    def __dlpack__(
        self,
        *,
        stream: Optional[Any] = None,
        max_version: Optional[tuple[int, int]] = None,
        dl_device: Optional[tuple[int, int]] = None,
        copy: Optional[bool] = None,
    ) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
