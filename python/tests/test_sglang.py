"""SGLang's load format `weightd`, with a stand-in for SGLang."""

import os
from dataclasses import dataclass

import models
import servers
import torch
import weightd_plugins.sglang

weightd_plugins.sglang.register()
weightd_plugins.sglang.register()

from sglang.srt.arg_groups.choices import LOAD_FORMAT_CHOICES  # noqa: E402
from sglang.srt.configs.load_config import LoadConfig, LoadFormat  # noqa: E402
from sglang.srt.model_loader.loader import DefaultModelLoader, get_model_loader  # noqa: E402
from sglang.srt.plugins.hook_registry import HookRegistry  # noqa: E402

SHAPES = {"up.weight": (8, 6), "down.weight": (6, 8)}


@dataclass
class ModelConfig:
    model_path: str
    is_draft_model: bool = False

    def make(self):
        return servers.Model(SHAPES)


class Loading(models.WithDirectory):
    @classmethod
    def setUpClass(cls):
        cls.hooks = len(HookRegistry.hooks)
        HookRegistry.apply_hooks()

    def save(self, name="model.safetensors", shapes=SHAPES, seed=0):
        return servers.save(self.at(name), shapes, seed)

    def loader(self, load_format="weightd", **more):
        return get_model_loader(LoadConfig(load_format=load_format, **more))

    def load(self, path=None, is_draft=False, **more):
        config = ModelConfig(path or self.directory, is_draft)
        return self.loader(**more).load_model(model_config=config, device_config="cpu")

    def assert_is(self, model, seed=0):
        for at, (name, shape) in enumerate(SHAPES.items()):
            self.assertTrue(torch.equal(model.parameters[name], servers.numbers(seed + at, shape)), name)

    def test_the_name_is_on_the_list_and_hooked_once(self):
        self.assertEqual(LOAD_FORMAT_CHOICES.count("weightd"), 1)
        self.assertEqual(self.hooks, 1)

    def test_the_name_becomes_the_loader_and_others_stay_what_they_are(self):
        for name in ("weightd", "Weightd"):
            self.assertEqual(type(self.loader(name)).__name__, "WeightdModelLoader")
        self.assertIs(LoadConfig("safetensors").load_format, LoadFormat.SAFETENSORS)
        with self.assertRaises(ValueError):
            LoadConfig("weight")

    def test_a_model_is_loaded_and_updated_in_place(self):
        self.save()
        model = self.load()
        self.assert_is(model)
        os.mkdir(self.at("next"))
        self.save("next/model.safetensors", seed=50)
        # As SGLang does it: with a new loader, which must be of its own kind.
        loader = self.loader()
        self.assertIsInstance(loader, DefaultModelLoader)
        source = DefaultModelLoader.Source.init_new(ModelConfig(self.at("next")), model)
        loader.load_weights_and_postprocess(model, loader._get_weights_iterator(source), "cpu")
        self.assert_is(model, 50)

    def test_the_source_stands_for_the_path_of_the_model_and_no_other(self):
        for name, seed in [("weights", 100), ("draft", 200)]:
            os.mkdir(self.at(name))
            self.save(f"{name}/model.safetensors", seed=seed)
        extra = '{"source": "%s"}' % self.at("weights")
        self.assert_is(self.load(model_loader_extra_config=extra), 100)
        self.assert_is(self.load(self.at("draft"), True, model_loader_extra_config=extra), 200)

    def test_the_same_weights_once_more_are_left_out(self):
        self.save()
        self.save("consolidated.safetensors", {"old": (1,)})
        self.assert_is(self.load())

    def test_a_layer_of_a_draft_is_picked(self):
        self.save(shapes={f"model.mtp.layers.{layer}.weight": (1,) for layer in range(3)})
        loader = self.loader(draft_model_idx=1)
        source = DefaultModelLoader.Source(self.directory, None)
        (found,) = loader._get_weights_iterator(source)
        self.assertEqual((found[0], found[1].item()), ("model.mtp.layers.0.weight", 1.0))

    def test_mistakes_are_named(self):
        self.refuses(ValueError, ["'sauce'", "source"], lambda: self.loader(model_loader_extra_config={"sauce": 1}))
        self.refuses(FileNotFoundError, [self.directory, "--load-format auto"], self.load)
        self.refuses(FileNotFoundError, ["org/name", "weightctl mount"], self.load, "org/name")
