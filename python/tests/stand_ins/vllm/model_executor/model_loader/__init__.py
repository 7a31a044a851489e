from .base_loader import BaseModelLoader
from .default_loader import DefaultModelLoader

_LOADERS = {"auto": DefaultModelLoader}


def register_model_loader(load_format: str):
    def register(loader):
        # vLLM warns here, and takes the new one.
        assert load_format not in _LOADERS, f"{load_format} is registered twice"
        assert issubclass(loader, BaseModelLoader)
        _LOADERS[load_format] = loader
        return loader

    return register


def get_model_loader(load_config):
    if load_config.load_format not in _LOADERS:
        raise ValueError(f"Load format `{load_config.load_format}` is not supported")
    return _LOADERS[load_config.load_format](load_config)
