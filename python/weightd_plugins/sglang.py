"""The entry point of SGLang's group `sglang.srt.plugins`: the load format `weightd`.

SGLang's load formats are an enumeration. What it also takes for one is a class of loaders, so a hook makes that of the name where
the name is checked.
"""

from __future__ import annotations

import logging

_CHECK = "sglang.srt.configs.load_config.LoadConfig._verify_load_format"
_NAME = "weightd"


def register() -> None:
    """May be called more than once, and never raises: SGLang would not start."""
    try:
        from sglang.srt.arg_groups.choices import LOAD_FORMAT_CHOICES, add_load_format_choices
        from sglang.srt.plugins.hook_registry import HookRegistry, HookType

        if _NAME in LOAD_FORMAT_CHOICES:
            return
        # The hook first: a name on the list without one would be taken, and fail later.
        HookRegistry.register(_CHECK, _verify_load_format, HookType.AROUND)
        add_load_format_choices([_NAME])
    except Exception as error:
        logging.getLogger(__name__).warning("The load format weightd is not available: %r", error)


def _verify_load_format(original, config):
    if isinstance(config.load_format, str) and config.load_format.lower() == _NAME:
        from ._sglang_loader import WeightdModelLoader

        config.load_format = WeightdModelLoader
    else:
        original(config)
