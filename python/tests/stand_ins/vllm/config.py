"""What is configured: the load, the model, and who of how many this process is."""

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Optional


@dataclass
class LoadConfig:
    load_format: str = "auto"
    safetensors_load_strategy: Optional[str] = None
    model_loader_extra_config: Any = field(default_factory=dict)


@dataclass
class ModelConfig:
    model: str
    revision: Optional[str] = None
    quantization: Optional[str] = None
    runner: str = "auto"


@dataclass
class VllmConfig:
    load_config: LoadConfig
    model_config: ModelConfig
    #: Which experts this process has; None where it has all.
    local_expert_ids: Optional[set] = None


_current = []


@contextmanager
def set_current_vllm_config(vllm_config):
    _current.append(vllm_config)
    try:
        yield
    finally:
        _current.pop()


def get_current_vllm_config():
    return _current[-1]
