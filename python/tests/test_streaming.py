"""Tensors that come through a ring, which is smaller than the model: each is there as long as it is used."""

import gc
import os
import random
import threading
import time

import agent
import models
import numpy
import weightd

MODEL = {f"layers.{at}": ("F32", (1024 * (1 + at % 4),)) for at in range(20)}
MODEL["none"] = ("F16", (0, 5))
MODEL["scale"] = ("BF16", (4,))
#: Four of the largest tensors, at most.
PAGES = 16


def right(name):
    return models.content(*MODEL[name], list(MODEL).index(name))


class Streams(models.WithDirectory):
    def setUp(self):
        super().setUp()
        self.path = models.write(self.at("x.safetensors"), MODEL)
        self.socket = self.at(".weightd.sock")
        self.model = agent.Model({"x.safetensors": MODEL})

    def serve(self, *serve):
        served = agent.Agent(self.socket, *serve or [agent.streaming(self.model, PAGES)])
        self.addCleanup(served.close)
        self.addCleanup(lambda: self.assertEqual(served.problems, []))
        return served

    def open(self, **options):
        tensors = weightd.open(self.directory, stream=True, **options)
        self.assertEqual((tensors.how, tensors.why), ("stream", None))
        return tensors

    def test_a_ring_is_asked_for_as_large_as_somebody_says(self):
        asked = []

        def serve(client):
            client.hear_open()
            asked.append(client.more)
            client.lend(self.model, ring=agent.Arena(4096))
            client.until_it_ends()

        self.serve(serve)
        for stream, verified in [(True, False), ("256MiB", True), (12345, False)]:
            weightd.open(self.directory, stream=stream, verified=verified)
        names = weightd.open(self.directory, stream=True, names=["scale"])
        self.assertEqual([more["ring"] for more in asked[:3]], [(0, False), (256 << 20, True), (12345, False)])
        self.assertEqual([more["wanted_only"] for more in asked], [False] * 3 + [True])
        self.assertEqual(names.keys(), ["scale"])
        for stream in ("much", 0, -1, 1.5, [], ""):
            self.refuses(weightd.InvalidArgument, ["stream"], lambda: weightd.open(self.directory, stream=stream))

    def test_every_tensor_is_right_in_any_order(self):
        self.serve()
        for shuffled in (False, True):
            tensors = self.open()
            names = tensors.offset_keys()
            self.assertEqual(names, list(MODEL))
            if shuffled:
                random.Random(7).shuffle(names)
            for name in [*names, *names]:
                for use in (lambda tensor: tensor.numpy(), numpy.asarray, lambda tensor: tensor.raw().numpy()):
                    self.assertEqual(use(tensors[name]).tobytes(), right(name), name)
                tensor = tensors[name]
                if tensor.dtype != "BF16":
                    self.assertEqual(numpy.from_dlpack(tensor).tobytes(), right(name), name)

    def test_a_tensor_has_memory_as_long_as_there_is_an_array(self):
        self.serve()
        tensors = self.open()
        # All of these at once, and only those that are used take anything.
        for name, tensor in tensors.items():
            self.assertEqual((tensor.name, tensor.shape), (name, MODEL[name][1]))
            array = tensor.numpy()
            self.assertEqual(array.tobytes(), right(name))
            again = tensors[name].numpy()
            if array.size:
                self.assertEqual(again.ctypes.data, array.ctypes.data)
                self.assertTrue(tensor.ready)
                again[...] = 1
                self.assertEqual(array.tobytes(), again.tobytes())
            del array, again
            self.assertEqual(tensor.numpy().tobytes(), right(name), "what was written is gone")

    def test_arrays_live_on_without_the_tensors(self):
        self.serve()
        with self.open() as tensors:
            arrays = [numpy.asarray(tensors["layers.3"]), tensors["layers.7"].numpy()]
            capsule = tensors["layers.2"].__dlpack__()
        del tensors
        gc.collect()
        self.assertEqual([array.tobytes() for array in arrays], [right("layers.3"), right("layers.7")])
        del capsule

    def test_the_array_is_what_somebody_asks_for(self):
        self.serve()
        tensor = self.open()["layers.1"]
        self.assertFalse(hasattr(tensor, "__array_interface__"))
        self.assertEqual(numpy.asarray(tensor).dtype, numpy.float32)
        self.assertEqual(numpy.asarray(tensor, dtype="f8").tolist(), tensor.numpy().tolist())
        array = tensor.numpy()
        self.assertEqual(numpy.asarray(tensor).ctypes.data, array.ctypes.data)
        self.assertNotEqual(numpy.array(tensor, copy=True).ctypes.data, array.ctypes.data)

    def test_holding_all_of_them_is_told(self):
        self.serve()
        tensors = self.open()
        held = []
        with self.assertRaises(weightd.RingFull) as raised:
            for name in tensors.offset_keys():
                held.append(tensors[name].numpy())
        self.assertIsInstance(raised.exception, MemoryError)
        for words in (f"{len(held)} tensors", "layers.", "make the ring larger", self.directory):
            self.assertIn(words, str(raised.exception))
        held.clear()
        self.assertEqual(tensors["layers.19"].numpy().tobytes(), right("layers.19"))

    def test_who_waits_for_room_gets_it_when_another_thread_lets_go(self):
        self.serve()
        tensors = self.open()
        held = [tensors[f"layers.{at}"].numpy() for at in (3, 7, 11)] + [tensors["layers.2"].numpy()]
        threading.Timer(0.3, held.clear).start()
        self.assertEqual(tensors["layers.15"].numpy().tobytes(), right("layers.15"))

    def test_threads_use_them_at_once(self):
        self.serve()
        tensors, wrong = self.open(), []

        def use(seed):
            chance = random.Random(seed)
            for _ in range(40):
                name = chance.choice(list(MODEL))
                array = tensors[name].numpy()
                if array.tobytes() != right(name):
                    wrong.append(name)

        threads = [threading.Thread(target=use, args=[seed]) for seed in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])

    def test_waiting_sets_the_order_and_returns_at_once(self):
        wants = []

        def serve(client):
            client.hear_open()
            client.lend(self.model, ring=agent.Arena(4096))
            while (heard := client.hear()) is not None:
                wants.append(agent.ranges(heard[1]))

        self.serve(serve)
        tensors = self.open(names=["layers.1*", "none"])
        tensors.wait(["layers.17", "layers.1", "layers.18"])
        tensors.wait()
        while len(wants) < 3:
            time.sleep(0.001)
        self.assertEqual(wants, [[(1, 2), (10, 20)], [(17, 18), (1, 2), (18, 19)], [(1, 2), (10, 20)]])
        self.refuses(KeyError, ["layers.2"], tensors.wait, ["layers.2"])

    def test_the_next_agent_brings_what_the_last_one_did_not(self):
        self.serve(agent.streaming(self.model, PAGES, end=3), agent.streaming(self.model, PAGES))
        tensors = self.open(names=lambda name: True)
        first = tensors["layers.0"].numpy()
        first[0] = 99
        for name in tensors.offset_keys()[1:]:
            self.assertEqual(tensors[name].numpy().tobytes(), right(name))
        self.assertEqual(first[0], 99)
        self.assertEqual(first[1:].tobytes(), right("layers.0")[4:])
        self.assertEqual(tensors["layers.0"].numpy().ctypes.data, first.ctypes.data)
        del first
        self.assertEqual(tensors["layers.0"].numpy().tobytes(), right("layers.0"))

    def test_a_process_that_is_forked_off_has_a_stream_of_its_own(self):
        self.serve()
        tensors = self.open()
        held = tensors["layers.0"].numpy()
        child = os.fork()
        if child == 0:
            wrong = tensors["layers.1"].numpy().tobytes() != right("layers.1")
            wrong |= tensors["layers.5"].numpy().tobytes() != right("layers.5")
            wrong |= held.tobytes() != right("layers.0")
            del held, tensors
            os._exit(wrong)
        self.assertEqual(os.waitpid(child, 0)[1], 0)
        self.assertEqual(held.tobytes(), right("layers.0"))
        for name in MODEL:
            self.assertEqual(tensors[name].numpy().tobytes(), right(name))

    def test_without_an_agent_files_are_mapped(self):
        tensors = weightd.open(self.directory, stream=True)
        self.assertEqual(tensors.how, "mapped files")
        self.assertIn(".weightd.sock", tensors.why)
        self.assertEqual(tensors["layers.5"].numpy().tobytes(), right("layers.5"))
        served = self.serve()
        self.assertEqual(weightd.open(self.directory, stream=True, agent=False).why, "agent=False")
        self.assertEqual(weightd.open(self.directory, stream=False, agent=False).why, "agent=False")
        self.assertTrue(served.ended.empty())

    def test_an_agent_without_room_for_the_ring_is_no_reason_to_map(self):
        self.serve(lambda client: client.fail("memory", 'the tensor "a" takes more than the ring', "ask for more"))
        self.refuses(weightd.NoMemory, ['"a"', "ask for more"], self.open)

        def serve(client):
            client.hear_open()
            client.lend(self.model, ring=agent.Arena(4096))
            client.hear()
            client.fail("memory", "too small for a tensor")

        other = agent.Agent(self.at("other.sock"), serve)
        tensors = weightd.open(self.directory, stream=True, agent=self.at("other.sock"))
        self.refuses(MemoryError, ["too small"], tensors["layers.3"].numpy)
        other.close()

    def test_what_an_agent_must_not_say_is_raised(self):
        def serve(client):
            client.hear_open()
            client.lend(self.model, ring=agent.Arena(4096))
            client.say(agent.DELIVERED, agent.blob(1, agent.number(1, 5) + agent.number(2, 4096)))
            client.until_it_ends()

        self.serve(serve)
        self.refuses(weightd.AgentFailed, ["layers.5", "outside of the ring"], self.open()["layers.5"].numpy)
