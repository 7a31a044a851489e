"""The entry point of vLLM's group `vllm.general_plugins`: the load format `weightd`.

vLLM runs it in its front end and in helpers too, which never load a model and have not imported what loaders are made of.
Importing that here would cost each of them seconds. So the load format is registered when vLLM imports its loaders.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import logging
import sys

_LOADERS = "vllm.model_executor.model_loader"


def register() -> None:
    """May be called more than once, and never raises: vLLM would not start."""
    try:
        if _LOADERS in sys.modules:
            _add()
        elif not any(isinstance(finder, _Loaders) for finder in sys.meta_path):
            sys.meta_path.insert(0, _Loaders())
    except Exception as error:
        _warn(error)


class _Loaders(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the module of vLLM's loaders as it would be found, and adds one to them once they are there."""

    def find_spec(self, name, path=None, target=None):
        if name != _LOADERS or self not in sys.meta_path:
            return None
        # From here on everything is as if this had never been there.
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        try:
            _add()
        except Exception as error:
            _warn(error)


def _add():
    # Registering twice would be a warning of vLLM's; importing twice is nothing.
    from . import _vllm_loader  # noqa: F401


def _warn(error):
    # Below vLLM's own logger, which is configured.
    logging.getLogger("vllm.weightd").warning("The load format weightd is not available: %r", error)
