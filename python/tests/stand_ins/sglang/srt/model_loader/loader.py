import re
from dataclasses import dataclass
from typing import Any, Optional

from sglang.srt.configs.load_config import LoadFormat


class BaseModelLoader:
    def __init__(self, load_config):
        self.load_config = load_config


class DefaultModelLoader(BaseModelLoader):
    @dataclass
    class Source:
        model_or_path: str
        revision: Optional[str]
        prefix: str = ""
        fall_back_to_pt: bool = True
        allow_patterns_overrides: Optional[list] = None
        model_config: Any = None

        @classmethod
        def init_new(cls, model_config, model):
            patterns = getattr(model, "allow_patterns_overrides", None)
            return cls(model_config.model_path, None, allow_patterns_overrides=patterns, model_config=model_config)

    counter_before_loading_weights: float = 0.0

    def __init__(self, load_config):
        super().__init__(load_config)
        unexpected = set(load_config.model_loader_extra_config) - {"enable_multithread_load", "num_threads"}
        if unexpected:
            raise ValueError(f"Unexpected extra config keys: {unexpected}")

    def _get_weights_iterator(
        self, source, *, resolved_source=None, startup_prefetch_started=False, startup_prefetch_active=False
    ):
        raise AssertionError("SGLang would read files of formats that it knows")

    @classmethod
    def _filter_mtp_weights(cls, weights_iterator, prefix, draft_model_idx):
        for name, tensor in weights_iterator:
            layer = re.match(r"model\.mtp\.layers\.(\d+)\.", name)
            if layer is None or int(layer[1]) == draft_model_idx:
                yield prefix + re.sub(r"mtp\.layers\.\d+", "mtp.layers.0", name), tensor

    def _get_all_weights(self, model_config, model):
        yield from self._get_weights_iterator(self.Source.init_new(model_config, model))

    def load_model(self, *, model_config, device_config):
        model = model_config.make()
        self.load_weights_and_postprocess(model, self._get_all_weights(model_config, model), device_config)
        return model

    @staticmethod
    def load_weights_and_postprocess(model, weights, target_device):
        model.load_weights(weights)


def get_model_loader(load_config, model_config=None):
    if isinstance(load_config.load_format, type):
        return load_config.load_format(load_config)
    assert isinstance(load_config.load_format, LoadFormat)
    return DefaultModelLoader(load_config)
