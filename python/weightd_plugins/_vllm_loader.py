"""vLLM's loader of the load format `weightd`.

It is vLLM's own but for where tensors come from. What that does around them is left to it, in every version of it: second
sources of a model, prefixes, which experts a rank has, what must have been loaded.
"""

from __future__ import annotations

import dataclasses
import os
import time

from vllm.logger import init_logger
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.ep_weight_filter import should_skip_weight

from . import _weights

# Below vLLM's own logger, which is configured.
logger = init_logger("vllm.weightd")


@register_model_loader(_weights.NAME)
class WeightdModelLoader(DefaultModelLoader):
    """Loads weights that are mapped, not read: a rank touches what it takes."""

    def __init__(self, load_config):
        self.options = _weights.Options(load_config.model_loader_extra_config)
        # It would refuse keys that are not its own.
        super().__init__(dataclasses.replace(load_config, model_loader_extra_config={}))
        self.load_config = load_config
        self._opened = []

    def download_model(self, model_config):
        """Nothing has to be here before it is used. What is missing altogether is said now."""
        self.options.is_for(model_config.model)
        self._places(model_config.model)

    def load_weights(self, model, model_config):
        if model_config.runner != "draft":
            self.options.is_for(model_config.model)
        super().load_weights(model, model_config)

    def get_all_weights(self, model_config, model):
        # To load once more vLLM asks a new loader for this alone, which has not learned yet which experts it needs.
        self._init_ep_weight_filter(model_config)
        yield from super().get_all_weights(model_config, model)

    def _get_weights_iterator(self, source):
        if self.counter_before_loading_weights == 0.0:
            self.counter_before_loading_weights = time.perf_counter()
        self._check_strategy(source.model_or_path)
        opened = self._places(source.model_or_path, source.subfolder, source.allow_patterns_overrides)
        is_unused = getattr(source, "is_unused_weight", None) or (lambda name: False)

        def is_wanted(name):
            return not should_skip_weight(name, self.local_expert_ids) and not is_unused(name)

        self._opened += opened
        found = _weights.weights(opened, self.options.open, is_wanted, logger.info)
        return ((source.prefix + name, tensor) for name, tensor in found)

    def _places(self, model, subfolder=None, patterns=None):
        place = self.options.place(model)
        if subfolder is not None:
            place = os.path.join(place, subfolder)
        return _weights.places(place, patterns, consolidated=True)

    def _check_strategy(self, model):
        strategy = self.load_config.safetensors_load_strategy
        if strategy == "torchao":
            raise ValueError(
                f"{model}: tensors that torchao wrote are put together from several, which the load format weightd does "
                "not do: load it with --load-format auto"
            )
        if strategy not in (None, "lazy"):
            logger.warning("safetensors_load_strategy=%s has no effect on the load format weightd", strategy)

    def track_weights_loading(self, model, *arguments, **options):
        try:
            super().track_weights_loading(model, *arguments, **options)
        except ValueError as error:
            # It names every tensor, and nothing else.
            raise ValueError(
                f"{', '.join(self._opened)}: not complete, or config.json is another model's: {str(error)[:1000]}"
            ) from None
