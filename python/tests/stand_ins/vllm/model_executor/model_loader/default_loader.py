from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

from vllm.config import get_current_vllm_config

from .base_loader import BaseModelLoader


class DefaultModelLoader(BaseModelLoader):
    @dataclass
    class Source:
        model_or_path: str
        revision: Optional[str]
        subfolder: Optional[str] = None
        prefix: str = ""
        fall_back_to_pt: bool = True
        allow_patterns_overrides: Optional[list] = None
        is_unused_weight: Optional[Callable] = None

    counter_before_loading_weights: float = 0.0
    counter_after_loading_weights: float = 0.0

    def __init__(self, load_config):
        super().__init__(load_config)
        self.local_expert_ids = None
        unexpected = set(load_config.model_loader_extra_config) - {"enable_multithread_load", "num_threads"}
        if unexpected:
            raise ValueError(f"Unexpected extra config keys: {unexpected}")

    def download_model(self, model_config):
        raise AssertionError("vLLM would look for files of formats that it knows")

    def _get_weights_iterator(self, source):
        raise AssertionError("vLLM would read files of formats that it knows")

    def _init_ep_weight_filter(self, model_config):
        self.local_expert_ids = get_current_vllm_config().local_expert_ids

    def get_all_weights(self, model_config, model):
        first = self.Source(
            model_config.model,
            model_config.revision,
            allow_patterns_overrides=getattr(model, "allow_patterns_overrides", None),
            is_unused_weight=getattr(model, "is_unused_checkpoint_weight", None),
        )
        for source in (first, *getattr(model, "secondary_weights", ())):
            yield from self._get_weights_iterator(source)

    def load_weights(self, model, model_config):
        self._init_ep_weight_filter(model_config)
        loaded = model.load_weights(self.get_all_weights(model_config, model))
        self.track_weights_loading(model, loaded)

    def track_weights_loading(self, model, loaded_weights, quantized=False):
        missing = {name for name, _ in model.named_parameters()} - loaded_weights
        if missing:
            raise ValueError(f"Following weights were not initialized from checkpoint: {missing}")
