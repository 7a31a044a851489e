"""The tensors of a model, for torch, JAX and numpy, without a copy.

>>> with weightd.open("/models/llama") as tensors:
...     weight = tensors["lm_head.weight"].torch()

`weightd.safe_open` takes the place of `safetensors.safe_open`.
"""

from ._native import Tensor, Tensors, open
from ._safe_open import Slice, safe_open
from .errors import (
    AgentFailed,
    CannotShare,
    Closed,
    DeviceFailed,
    InvalidArgument,
    InvalidFile,
    InvalidIndex,
    NoAgent,
    NoMemory,
    NotFound,
    NotPermitted,
    RingFull,
    TensorNotFound,
    Unreadable,
    Unsupported,
    WeightdError,
)

#: What code that moves here from safetensors catches.
SafetensorError = WeightdError

__all__ = [
    "AgentFailed",
    "CannotShare",
    "Closed",
    "DeviceFailed",
    "InvalidArgument",
    "InvalidFile",
    "InvalidIndex",
    "NoAgent",
    "NoMemory",
    "NotFound",
    "NotPermitted",
    "RingFull",
    "SafetensorError",
    "Slice",
    "Tensor",
    "Tensors",
    "TensorNotFound",
    "Unreadable",
    "Unsupported",
    "WeightdError",
    "open",
    "safe_open",
]
