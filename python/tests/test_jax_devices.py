"""Tensors on devices that JAX names: two, which are parts of the processor here."""

import gc
import os
import queue

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import agent  # noqa: E402
import jax  # noqa: E402
import models  # noqa: E402
import numpy  # noqa: E402
import weightd  # noqa: E402

FIRST, SECOND = jax.devices("cpu")
#: Types that JAX has as they are.
MODEL = {f"layer.{dtype}": (dtype, (8, 64)) for dtype in ("F32", "I32", "F16", "BF16", "F8_E4M3", "U8", "BOOL")}


def right(name):
    return models.content(*MODEL[name], list(MODEL).index(name))


class Devices(models.WithDirectory):
    def setUp(self):
        super().setUp()
        self.path = models.write(self.at("x.safetensors"), MODEL, pad=64)
        self.model = agent.Model({"x.safetensors": MODEL})

    def serve(self, *serve):
        served = agent.Agent(self.at(".weightd.sock"), *serve)
        self.addCleanup(served.close)
        return served

    def test_tensors_are_on_the_device_that_was_asked_for(self):
        self.serve(agent.lending(self.model.fill()))
        for device, expected in [(SECOND, SECOND), (FIRST, FIRST), ("jax:1", SECOND), ("jax", FIRST)]:
            for options in ({}, {"agent": False}):
                tensors = weightd.open(self.path, device=device, **options)
                self.assertEqual((tensors.device, tensors.transfer), (expected, "jax.device_put"))
                self.assertIsNone(tensors.transfer_why)
                for name in MODEL:
                    self.assertEqual(tensors[name].device, expected)
                    array = tensors[name].jax()
                    self.assertEqual((array.devices(), array.shape), ({expected}, (8, 64)))
                    self.assertEqual(numpy.asarray(array).tobytes(), right(name), name)

    def test_a_sharding_spreads_a_tensor(self):
        self.serve(agent.lending(self.model.fill()))
        mesh = jax.sharding.Mesh(numpy.array([FIRST, SECOND]), ("x",))
        for spec in (("x",), (None, "x")):
            sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
            tensors = weightd.open(self.path, device=sharding)
            self.assertEqual(tensors.device, sharding)
            for name in MODEL:
                array = tensors[name].jax()
                self.assertEqual(array.sharding, sharding)
                self.assertEqual([shard.device for shard in array.addressable_shards], [FIRST, SECOND])
                self.assertEqual(numpy.asarray(array).tobytes(), right(name), name)

    def test_slices_follow_each_other_on_the_device(self):
        whole = weightd.open(self.path)["layer.F32"].numpy()
        tensor = weightd.open(self.path, device=SECOND, slices={"layer.F32": (1, 1, 2)})["layer.F32"]
        self.assertEqual(numpy.asarray(tensor.jax()).tobytes(), whole[:, 32:].tobytes())

    def test_other_frameworks_have_the_processors_memory(self):
        tensor = weightd.open(self.path, device=SECOND)["layer.F32"]
        self.assertEqual(tensor.__dlpack_device__(), (1, 0))
        self.assertEqual(tensor.numpy().ctypes.data, tensor.__array_interface__["data"][0])

    def test_a_place_in_a_ring_is_kept_as_long_as_jax_needs_it(self):
        released = queue.Queue()

        def serve(client):
            client.hear_open()
            ring = agent.Arena(4096 * 4)
            client.lend(self.model, ring=ring)
            _, _, content = self.model.tensors[0]
            ring.memory[: len(content)] = content
            client.say(agent.DELIVERED, agent.blob(1, b""))
            while (heard := client.hear()) is not None:
                if heard[0] == agent.RELEASE:
                    ring.memory[: len(content)] = bytes(len(content))
                    released.put(True)

        self.serve(serve)
        name = next(iter(MODEL))
        tensors = weightd.open(self.directory, device=SECOND, stream=True)
        array = tensors[name].jax().block_until_ready()
        gc.collect()
        # On a processor JAX may use the memory in place; if it has copied it, the place goes back by itself.
        self.assertEqual(numpy.asarray(array).tobytes(), right(name))
        del array
        gc.collect()
        released.get(timeout=10)

    def test_what_jax_does_not_have_is_told(self):
        for device, words in [("tpu", ["tpu", "JAX has none here"]), ("gpu:1", ["gpu:1"]), ("jax:2", ["jax:2", "JAX has 2"])]:
            self.refuses(weightd.Unsupported, words, lambda device=device: weightd.open(self.path, device=device))
