"""vLLM's load format `weightd`, with a stand-in for vLLM."""

import json
import os
import subprocess
import sys
import unittest.mock

import models
import servers
import torch
import weightd
import weightd_plugins.vllm

weightd_plugins.vllm.register()

from vllm.config import LoadConfig, ModelConfig, VllmConfig, set_current_vllm_config  # noqa: E402
from vllm.model_executor.model_loader import get_model_loader  # noqa: E402
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader  # noqa: E402

SHAPES = {"up.weight": (8, 6), "down.weight": (6, 8)}


class Plugin(unittest.TestCase):
    def run_alone(self, code, *path):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], *path])}
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        self.assertEqual((run.returncode, run.stderr), (0, ""))
        return run.stdout.split()

    def test_it_imports_nothing_until_loaders_are_imported(self):
        code = "import sys, weightd_plugins.vllm as plugin; plugin.register(); plugin.register()\n"
        code += "print(*(name for name in sys.modules if name.split('.')[0] in ('torch', 'vllm', 'weightd')))\n"
        code += "print(sum(type(finder).__module__ == 'weightd_plugins.vllm' for finder in sys.meta_path))\n"
        self.assertEqual(self.run_alone(code), ["1"])

    def test_it_registers_once_whether_loaders_are_there_or_come_later(self):
        call = "plugin.register(); "
        loaders = "import vllm.model_executor.model_loader as loaders; "
        for order in [call + loaders, loaders + call, call + loaders + call, call + call + loaders]:
            code = f"import sys, weightd_plugins.vllm as plugin; {order}"
            code += "print(loaders._LOADERS['weightd'].__name__, 'weightd' in sys.modules, loaders.__loader__.name)"
            said = self.run_alone(code, sys.path[0])
            self.assertEqual(said, ["WeightdModelLoader", "False", "vllm.model_executor.model_loader"], order)

    def test_a_vllm_that_is_another_is_a_warning(self):
        with models.directory() as directory:
            os.makedirs(os.path.join(directory, "vllm/model_executor/model_loader"))
            for package in ("vllm", "vllm/model_executor", "vllm/model_executor/model_loader"):
                open(os.path.join(directory, package, "__init__.py"), "w").close()
            code = "import logging, sys, weightd_plugins.vllm as plugin; logging.basicConfig(stream=sys.stdout)\n"
            code += "plugin.register(); import vllm.model_executor.model_loader; plugin.register(); plugin.register()"
            said = " ".join(self.run_alone(code, directory))
        self.assertEqual(said.count("The load format weightd is not available"), 3, said)


class Loading(models.WithDirectory):
    def setUp(self):
        super().setUp()
        self.model = self.at("model")
        os.mkdir(self.model)

    def save(self, name="model.safetensors", shapes=SHAPES, seed=0, where=None):
        return servers.save(os.path.join(where or self.model, name), shapes, seed)

    def config(self, extra=None, path=None, **more):
        load = LoadConfig("weightd", model_loader_extra_config={} if extra is None else extra)
        return VllmConfig(load, ModelConfig(path or self.model), **more)

    def load(self, config=None, model=None):
        config, model = config or self.config(), model or servers.Model(SHAPES)
        with set_current_vllm_config(config):
            get_model_loader(config.load_config).load_weights(model, config.model_config)
        return model

    def reload(self, config, model, path=None):
        """As vLLM's workers do it: with another loader, of which they want the weights alone."""
        if path is not None:
            config.model_config.model = path
        with set_current_vllm_config(config):
            loader = get_model_loader(config.load_config)
            return model.load_weights(loader.get_all_weights(config.model_config, model))

    def assert_is(self, model, seed=0):
        for at, (name, shape) in enumerate(SHAPES.items()):
            size = model.parameters[name].shape[model.split(name)]
            right = servers.numbers(seed + at, shape).narrow(model.split(name), model.rank * size, size)
            self.assertTrue(torch.equal(model.parameters[name], right), name)

    def names(self, model=None, config=None):
        """What a loader hands out, without loading it."""
        config = config or self.config()
        with set_current_vllm_config(config):
            loader = get_model_loader(config.load_config)
            return [name for name, _ in loader.get_all_weights(config.model_config, model)]

    def test_parts_of_ranks_are_right(self):
        self.save()
        for rank in range(2):
            self.assert_is(self.load(model=servers.Model(SHAPES, ["down.weight"], rank, 2)))

    def test_a_loader_that_is_made_does_nothing(self):
        for _ in range(2):
            get_model_loader(self.config(path="/nowhere").load_config)

    def test_what_is_loaded_once_more_is_right(self):
        self.save()
        config = self.config()
        model = self.load(config)
        model.forget()
        self.assertEqual(self.reload(config, model), set(SHAPES))
        self.assert_is(model)

    def test_a_rank_touches_what_it_takes(self):
        # Rows of 4 MiB: half of each is far more than the pages that the kernel maps around one.
        shapes = {"up.weight": (8, 1 << 20), "down.weight": (8, 1 << 20)}
        path = self.at("model/model.safetensors")
        entries, bytes_each = {}, 32 << 20
        for at, name in enumerate(shapes):
            offsets = [at * bytes_each, (at + 1) * bytes_each]
            entries[name] = {"dtype": "F32", "shape": [8, 1 << 20], "data_offsets": offsets}
        header = json.dumps(entries).encode()
        header += b" " * (-len(header) % 8)
        with open(path, "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + 2 * bytes_each)
        seen = []
        model = servers.Model(shapes, ["down.weight"], rank=1, ranks=2)
        load = model.load_weights

        def load_weights(weights):
            # Kept, so that the mapping is still there to be looked at.
            kept = list(weights)
            seen.append(servers.touched(path))
            loaded = load(kept)
            seen.append(servers.touched(path))
            return loaded

        model.load_weights = load_weights
        self.load(model=model)
        untouched, half = seen
        self.assertLess(untouched, 1 << 20)
        self.assertGreater(half, bytes_each)
        self.assertLess(half, 1.3 * bytes_each)

    def test_a_rank_is_given_its_own_experts_and_everything_else(self):
        experts = {f"layers.0.mlp.experts.{expert}.up.weight": (2, 2) for expert in range(8)}
        others = {"layers.0.mlp.gate.weight": (2, 2), "layers.0.mlp.experts.7.up.input_scale": (1,)}
        self.save(shapes={**experts, **others})
        config = self.config(local_expert_ids={2, 3})
        right = {"layers.0.mlp.experts.2.up.weight", "layers.0.mlp.experts.3.up.weight", *others}
        # Loaded once more too, where vLLM's own loader gives all of them.
        self.assertEqual(set(self.names(config=config)), right)
        model = servers.Model({**experts, **others})
        model.named_parameters = dict
        self.load(config, model)
        loaded = {name for name, parameter in model.parameters.items() if parameter.max() >= 0}
        self.assertEqual(loaded, right)

    def test_what_a_model_does_not_load_is_not_given_to_it(self):
        self.save()
        model = unittest.mock.Mock(spec=["is_unused_checkpoint_weight"])
        model.is_unused_checkpoint_weight = lambda name: name.startswith("up")
        self.assertEqual(self.names(model), ["down.weight"])

    def test_tensors_may_be_written_to_and_kept(self):
        path = self.save()
        before = open(path, "rb").read()
        config = self.config()
        with set_current_vllm_config(config):
            kept = dict(get_model_loader(config.load_config).get_all_weights(config.model_config, None))
        kept["up.weight"].zero_()
        self.assertTrue(torch.equal(kept["down.weight"], servers.numbers(list(SHAPES).index("down.weight"), (6, 8))))
        self.assertEqual(open(path, "rb").read(), before)

    def test_the_source_stands_for_the_path_of_the_model_and_no_other(self):
        elsewhere, other = self.at("weights"), self.at("other")
        for directory, seed in [(elsewhere, 100), (other, 200)]:
            os.mkdir(directory)
            self.save(where=directory, seed=seed)
        config = self.config({"source": elsewhere})
        model = self.load(config)
        self.assert_is(model, 100)
        draft = self.config({"source": elsewhere}, other)
        draft.model_config.runner = "draft"
        self.assert_is(self.load(draft), 200)
        # Once more from where it was, and then from where vLLM is told to.
        model.forget()
        self.reload(config, model)
        self.assert_is(model, 100)
        self.reload(config, model, other)
        self.assert_is(model, 200)

    def test_other_sources_of_a_model_have_their_prefix_and_folder(self):
        self.save()
        os.mkdir(self.at("model/tower"))
        self.save("tower/audio.safetensors", {"conv.weight": (2, 2)})
        self.save("tower/rest.safetensors", {"rest.weight": (2, 2)})
        model = unittest.mock.Mock(spec=["secondary_weights"])
        source = DefaultModelLoader.Source(self.model, None, "tower", "tower.", allow_patterns_overrides=["a*.safetensors"])
        model.secondary_weights = [source]
        self.assertEqual(set(self.names(model)), {*SHAPES, "tower.conv.weight"})

    def test_files_are_those_that_vllm_takes(self):
        one, two, joined = {"a": (1,)}, {"b": (1,)}, {"c": (1,)}
        self.save("model-1.safetensors", one)
        self.save("model-2.safetensors", two)
        self.assertEqual(self.names(), ["a", "b"])
        with open(self.at("model/model.safetensors.index.json"), "w") as file:
            json.dump({"weight_map": {"b": "model-2.safetensors"}}, file)
        self.assertEqual(self.names(), ["b"])
        # The same model as Mistral publishes it, once more: then that is what vLLM loads.
        self.save("consolidated-1.safetensors", joined)
        self.save("consolidated-2.safetensors", {"old": (1,)})
        self.assertEqual(self.names(), ["c", "old"])
        with open(self.at("model/consolidated.safetensors.index.json"), "w") as file:
            json.dump({"weight_map": {"c": "consolidated-1.safetensors"}}, file)
        self.assertEqual(self.names(), ["c"])

    def test_options_are_those_of_open(self):
        path = self.save()
        opened = []

        def fake(path, order="file", slices=None, names=None):
            opened.append((path, order))
            return original(path, slices=slices, names=names)

        original = weightd.open
        with unittest.mock.patch.object(weightd, "open", fake):
            self.load(self.config({"source": path, "order": "name"}))
            self.refuses(ValueError, ["'rate'", "source", "order"], self.load, self.config({"rate": 1}))
        self.assertEqual(opened, [(path, "name")])

    def test_mistakes_in_the_extra_config_are_named(self):
        refused = [
            ({"sauce": 1, "a": 2}, ["'a', 'sauce'", "it has source"]),
            # What a server alone can say.
            ({"slices": {}, "names": []}, ["'names', 'slices'", "stream"]),
            ([1], ["JSON object", "list", "source"]),
            ({"source": 7}, ["source", "directory", "7"]),
            ({"source": ""}, ["source", "directory"]),
        ]
        for extra, words in refused:
            self.refuses(ValueError, ["weightd", *words], self.load, self.config(extra))

    def test_places_without_weights_are_named(self):
        for path in ("org/name", self.at("nowhere")):
            self.refuses(FileNotFoundError, [path, "weightctl mount", "source"], self.load, self.config(path=path))
        self.refuses(FileNotFoundError, [self.model, ".safetensors", "--load-format auto"], self.load)
        # A URI is the node's agent's, of which there is none where this socket is named.
        source = "gs://bucket/model"
        options = {"source": source, "agent": self.at("nobody.sock")}
        self.refuses(ConnectionError, [source, "nobody.sock", "weightd"], self.load, self.config(options))

    def test_a_model_that_is_not_complete_is_named(self):
        self.save(shapes={"up.weight": SHAPES["up.weight"]})
        self.refuses(ValueError, [self.model, "down.weight", "config.json"], self.load)
        with open(self.at("model/consolidated.safetensors.index.json"), "w") as file:
            json.dump({"weight_map": {"c": "consolidated-9.safetensors"}}, file)
        self.save("consolidated-1.safetensors")
        self.refuses(FileNotFoundError, ["consolidated-9.safetensors", "index", self.model], self.load)
        with open(self.at("model/consolidated.safetensors.index.json"), "w") as file:
            file.write("[]")
        self.refuses(ValueError, ["consolidated.safetensors.index.json", "no index"], self.load)

    def test_a_broken_file_is_named(self):
        with open(self.at("model/model.safetensors"), "wb") as file:
            file.write(b"\xff" * 100)
        self.refuses(weightd.InvalidFile, [self.model, "model.safetensors"], self.load)

    def test_what_the_loader_cannot_do_is_said_with_who_can(self):
        self.save()
        model = unittest.mock.Mock(spec=["allow_patterns_overrides"])
        for patterns in (["*.pt"], ["*.gguf", "*.safetensors"]):
            model.allow_patterns_overrides = patterns
            self.save("old.pt")
            self.save("old.gguf")
            self.refuses(ValueError, ["old.", "--load-format auto"], self.names, model)
        model.allow_patterns_overrides = ["none*.safetensors"]
        self.refuses(FileNotFoundError, [self.model, "none*.safetensors"], self.names, model)
        config = self.config()
        config.load_config.safetensors_load_strategy = "torchao"
        self.refuses(ValueError, [self.model, "torchao", "--load-format auto"], self.load, config)
        config.load_config.safetensors_load_strategy = "eager"
        with self.assertLogs("vllm.weightd", "WARNING") as logged:
            self.assert_is(self.load(config))
        self.assertIn("eager", logged.output[0])

    def test_the_log_says_what_was_opened_and_how(self):
        self.save()
        with self.assertLogs("vllm.weightd", "INFO") as logged:
            self.load()
        self.assertIn(f"2 of 2 tensors, 0.00 GB, of {self.model} (mapped files)", logged.output[0])

    def test_a_long_load_says_how_far_it_is(self):
        self.save()
        with unittest.mock.patch("weightd_plugins._weights._SECONDS_BETWEEN_REPORTS", 0):
            with self.assertLogs("vllm.weightd", "INFO") as logged:
                self.load()
        self.assertEqual(len(logged.output), 3, logged.output)
