"""SGLang's loader of the load format `weightd`.

It is SGLang's own but for where tensors come from. SGLang updates weights in place only through loaders of that kind.
"""

from __future__ import annotations

import dataclasses
import logging
import time

from sglang.srt.model_loader.loader import DefaultModelLoader

from . import _weights

logger = logging.getLogger(__name__)


class WeightdModelLoader(DefaultModelLoader):
    """Loads weights that are mapped, not read: a rank touches what it takes."""

    def __init__(self, load_config):
        self.options = _weights.Options(load_config.model_loader_extra_config)
        # It would refuse keys that are not its own.
        super().__init__(dataclasses.replace(load_config, model_loader_extra_config={}))
        self.load_config = load_config

    def download_model(self, model_config):
        """Nothing has to be here before it is used. What is missing altogether is said now."""
        self.options.is_for(model_config.model_path)
        self._places(model_config.model_path)

    def load_model(self, *, model_config, device_config):
        if not model_config.is_draft_model:
            self.options.is_for(model_config.model_path)
        return super().load_model(model_config=model_config, device_config=device_config)

    def _get_weights_iterator(self, source, **prefetched):
        # How far its own reading ahead has come is told in there, and there is none.
        del prefetched
        if self.counter_before_loading_weights == 0.0:
            self.counter_before_loading_weights = time.perf_counter()
        opened = self._places(source.model_or_path, source.allow_patterns_overrides)
        found = _weights.weights(opened, self.options.open, lambda name: True, logger.info)
        draft = self.load_config.draft_model_idx
        if draft is not None:
            return self._filter_mtp_weights(found, source.prefix, draft)
        return ((source.prefix + name, tensor) for name, tensor in found)

    def _places(self, model, patterns=None):
        return _weights.places(self.options.place(model), patterns)
