"""Says what a loader sees of the vLLM that is found first: the names of parameters, and which settings there are.

Of the stand-in and of vLLM itself it says the same, or the tests of the plugin prove nothing.
"""

import dataclasses
import importlib
import inspect

LOADERS = "vllm.model_executor.model_loader"
CALLED = {
    LOADERS: ["register_model_loader", "get_model_loader"],
    f"{LOADERS}.base_loader": ["BaseModelLoader.download_model", "BaseModelLoader.load_weights"],
    f"{LOADERS}.default_loader": [
        "DefaultModelLoader.__init__",
        "DefaultModelLoader.download_model",
        "DefaultModelLoader.get_all_weights",
        "DefaultModelLoader.load_weights",
        "DefaultModelLoader.track_weights_loading",
        "DefaultModelLoader._get_weights_iterator",
        "DefaultModelLoader._init_ep_weight_filter",
        "DefaultModelLoader.Source",
    ],
    f"{LOADERS}.ep_weight_filter": ["should_skip_weight"],
    "vllm.config": ["get_current_vllm_config"],
    "vllm.logger": ["init_logger"],
}
SETTINGS = {
    "LoadConfig": ["load_format", "safetensors_load_strategy", "model_loader_extra_config"],
    "ModelConfig": ["model", "revision", "quantization", "runner"],
    "VllmConfig": ["load_config", "model_config"],
}

for module, names in CALLED.items():
    for name in names:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        print(f"signature {module}.{name}({', '.join(inspect.signature(found).parameters)})")
for name, fields in SETTINGS.items():
    there = {field.name for field in dataclasses.fields(getattr(importlib.import_module("vllm.config"), name))}
    print(f"signature {name}: {', '.join(field for field in fields if field in there)}")
