"""vLLM's load format `weightd` where an agent lends the tensors, with stand-ins for both."""

import os

import agent
import servers
import torch
import weightd
import weightd_plugins.vllm
from test_handoff import WithAgent

weightd_plugins.vllm.register()

from vllm.config import LoadConfig, ModelConfig, VllmConfig, set_current_vllm_config  # noqa: E402
from vllm.model_executor.model_loader import get_model_loader  # noqa: E402

#: A page each, so that none comes with another.
SHAPES = {f"layers.{layer}.weight": (32, 32) for layer in range(4)}
EXPERTS = {f"layers.0.mlp.experts.{expert}.up.weight": (32, 32) for expert in range(4)}
URI = "gs://models/x"


class Lent(WithAgent):
    def setUp(self):
        super().setUp()
        self.node = self.at("node.sock")
        os.environ["WEIGHTD_HANDOFF_SOCKET"] = self.node
        self.addCleanup(os.environ.pop, "WEIGHTD_HANDOFF_SOCKET")
        self.wants = []

    def lent(self, shapes=SHAPES, seed=0):
        """What an agent lends; nothing of it is there yet."""
        model = agent.Model({"model.safetensors": {name: ("F32", shape) for name, shape in shapes.items()}})
        for at, shape in enumerate(shapes.values()):
            file, offset, _ = model.tensors[at]
            model.tensors[at] = (file, offset, servers.numbers(seed + at, shape).numpy().tobytes())
        return model

    def brings(self, model, most=None, then=None, verified=True):
        """Brings what is wanted, but no more tensors than that: then something else happens."""

        def serve(client):
            client.hear_open()
            client.lend(model)
            brought = set()
            while (want := client.hear_want()) is not None:
                self.wants += [position for start, end in want for position in range(start, end)]
                for position in (at for start, end in want for at in range(start, end)):
                    if most is not None and len(brought | {position}) > most:
                        return then and then(client)
                    brought.add(position)
                    model.fill([position])
                    client.ready(position, position + 1)
                    if verified:
                        client.ready(position, position + 1, verified=True)

        return serve

    def load(self, model, extra=None, **more):
        load = LoadConfig("weightd", model_loader_extra_config=extra or {"source": URI})
        config = VllmConfig(load, ModelConfig(self.directory), **more)
        with set_current_vllm_config(config):
            get_model_loader(load).load_weights(model, config.model_config)

    def assert_is(self, model, shapes=SHAPES, seed=0):
        for at, (name, shape) in enumerate(shapes.items()):
            self.assertTrue(torch.equal(model.parameters[name], servers.numbers(seed + at, shape)), name)

    def test_a_model_comes_from_its_origin_and_the_log_says_how(self):
        served = self.serve(self.brings(self.lent()), path=self.node)
        model = servers.Model(SHAPES)
        with self.assertLogs("vllm.weightd", "INFO") as logged:
            self.load(model)
        self.assert_is(model)
        self.assertIn(f"4 of 4 tensors, 0.00 GB, of {URI} (shared memory)", logged.output[0])
        self.assertTrue(served.ended.get(timeout=20))

    def test_tensors_are_given_as_they_come(self):
        self.serve(self.brings(self.lent()), path=self.node)
        self.load(servers.Model(SHAPES))
        self.assertEqual(self.wants[:4], list(range(4)))

    def test_with_verified_nothing_is_given_before_it_is(self):
        def fails(client):
            client.fail("unavailable", "it is over")

        def serve(client):
            client.hear_open()
            client.lend(self.lent().fill())
            # All have come, and none is compared yet.
            client.ready(0, 4)
            self.wants += client.hear_want()
            fails(client)

        model = servers.Model(SHAPES)
        self.serve(serve, path=self.node)
        options = {"source": URI, "verified": True}
        self.refuses(weightd.AgentFailed, ["it is over"], self.load, model, options)
        self.assertEqual(self.wants[0], (0, 4))
        self.assertTrue(all(parameter.max() < 0 for parameter in model.parameters.values()))

    def test_a_rank_asks_for_its_own_experts_alone(self):
        self.serve(self.brings(self.lent(EXPERTS)), path=self.node)
        model = servers.Model(EXPERTS)
        model.named_parameters = dict
        self.load(model, local_expert_ids={1, 2})
        self.assertEqual(set(self.wants), {1, 2})
        loaded = {name for name, parameter in model.parameters.items() if parameter.max() >= 0}
        self.assertEqual(loaded, {name for at, name in enumerate(EXPERTS) if at in (1, 2)})

    def test_when_the_agent_ends_half_way_the_next_one_brings_the_rest_and_nothing_twice(self):
        def ends(client):
            self.wants.append("ended")

        self.serve(self.brings(self.lent(), 2, ends), self.brings(self.lent()), path=self.node)
        model = servers.Model(SHAPES)
        given = []
        load = model.load_weights
        model.load_weights = lambda weights: load((given.append(name) or (name, tensor)) for name, tensor in weights)
        self.load(model)
        self.assert_is(model)
        self.assertEqual(given, list(SHAPES))
        # All were wanted of the first, which brought two, and only the others of the second.
        ended = self.wants.index("ended")
        self.assertEqual(self.wants[:4], [0, 1, 2, 3])
        self.assertEqual(set(self.wants[ended + 1 :]), {2, 3})

    def test_an_agent_that_says_that_it_ends_is_no_other_case(self):
        def stops(client):
            client.fail("try again", "the agent is shutting down")

        self.serve(self.brings(self.lent(), 2, stops), self.brings(self.lent()), path=self.node)
        model = servers.Model(SHAPES)
        self.load(model)
        self.assert_is(model)

    def test_what_was_wrong_in_transit_comes_once_more(self):
        self.serve(self.brings(self.lent(), 2, self.is_wrong, False), self.brings(self.lent()), path=self.node)
        model = servers.Model(SHAPES)
        self.load(model)
        self.assert_is(model)

    def test_no_server_begins_with_bytes_that_were_wrong(self):
        # All of them have been given when the agent learns of it.
        def serve(client):
            client.hear_open()
            client.lend(self.lent(seed=1).fill())
            client.ready(0, 4)
            client.hear_want()
            self.is_wrong(client)

        self.serve(serve, self.brings(self.lent()), path=self.node)
        self.refuses(weightd.InvalidFile, [URI, "layers.0.weight"], self.load, servers.Model(SHAPES))

    def test_a_failure_that_lasts_is_one_line(self):
        def fails(client):
            client.fail("unavailable", f"{URI}: nobody may read it any more", "grant it")

        self.serve(self.brings(self.lent(), 2, fails), path=self.node)
        self.refuses(weightd.AgentFailed, [URI, "nobody may read it", "grant it"], self.load, servers.Model(SHAPES))

    @staticmethod
    def is_wrong(client):
        client.fail("corrupt", f"{URI}/model.safetensors: it did not match its checksum")
