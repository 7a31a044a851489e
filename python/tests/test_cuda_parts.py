"""Slices and rings on their way to a CUDA device (cuda.py), and everything that frameworks and servers ask of such tensors."""

import queue
from unittest import mock

import agent
import cuda
import models
import numpy
import torch
import weightd
from weightd import _devices, _safe_open
from weightd_plugins import _weights

KIB = 1 << 10


class Slices(cuda.WithDevice):
    """Of a tensor of 160 KiB with rows of 1,280 bytes, in front of which another one lies, so that no border fits a row."""

    SHAPE = (32, 4, 320)
    MODEL = {"before": ("F32", (999,)), "w": ("F32", SHAPE)}

    def setUp(self):
        super().setUp()
        self.path = models.write(self.at("x.safetensors"), self.MODEL)
        self.whole = weightd.open(self.path)["w"].torch()
        _devices.REGISTERED_AT_ONCE_BYTES = 12 * KIB

    def opened(self, cut):
        told = {"w": cut}
        lent = agent.Model({"x.safetensors": self.MODEL}, slices=told).fill()
        served = agent.Agent(self.at("x.sock"), agent.lending(lent))
        try:
            yield self.open(self.path, slices={"w": cut}, agent=self.at("x.sock"))
            yield self.open(self.path, slices={"w": cut}, agent=False)
        finally:
            served.close()

    def all_are_right(self):
        for dimension, parts in [(0, 4), (1, 2), (1, 4), (2, 2), (2, 5), (2, 160)]:
            for part in {0, parts // 2, parts - 1}:
                for tensors in self.opened((dimension, part, parts)):
                    on_device = tensors["w"].torch()
                    own = self.SHAPE[dimension] // parts
                    right = self.whole.narrow(dimension, part * own, own)
                    cuda.synchronize()
                    case = (dimension, part, parts, tensors.transfer)
                    self.assertTrue(on_device.is_contiguous(), case)
                    self.assertTrue(torch.equal(on_device, right), case)
                    self.assertEqual(tensors["w"].raw().torch().numel(), 4 * right.numel())
                    cuda.synchronize()

    def test_they_are_what_torch_narrows_to(self):
        self.all_are_right()
        self.assertGreater(cuda.get("rectangles"), 0)

    def test_rows_that_are_too_far_apart_for_one_call(self):
        cuda.order(max_pitch=1000)
        self.all_are_right()
        self.assertEqual(cuda.get("rectangles"), 0)

    def test_when_registering_fails_between_their_rows(self):
        for after in (1, 2, 5):
            cuda.order(fail_registration=after)
            with self.assertLogs("weightd"):
                opened = self.opened((2, 1, 2))
                tensors = next(opened)
                on_device = tensors["w"].torch()
                opened.close()
            cuda.synchronize()
            self.assertTrue(torch.equal(on_device, self.whole.narrow(2, 160, 160)), after)
            self.assertEqual(tensors.transfer, "staging buffers")
            del tensors
            cuda.until(lambda: cuda.get("registrations") == 0)


class Rings(cuda.WithDevice):
    MODEL = {f"layers.{at}": ("F32", (1024 * (4 + 4 * (at % 4)),)) for at in range(24)}
    #: 192 KiB, which four of the largest do not fit into.
    PAGES = 48

    def setUp(self):
        super().setUp()
        self.path = models.write(self.at("x.safetensors"), self.MODEL)
        self.model = agent.Model({"x.safetensors": self.MODEL})

    def serve(self, *serve):
        served = agent.Agent(self.at(".weightd.sock"), *serve)
        self.addCleanup(served.close)
        self.addCleanup(lambda: self.assertEqual(served.problems, []))

    def right(self, name):
        return models.content(*self.MODEL[name], list(self.MODEL).index(name))

    def test_a_model_goes_through_a_ring_that_is_smaller(self):
        for read_only in (1, 0):
            cuda.order(read_only_register=read_only, delay_us=500)
            served = agent.Agent(self.at(".weightd.sock"), agent.streaming(self.model, self.PAGES))
            # All are kept, as a server keeps its parameters.
            tensors = self.open(self.directory, stream=True)
            copies = {name: tensors[name].torch() for name in tensors.offset_keys()}
            for name, copy in copies.items():
                self.assertEqual(cuda.contents(copy), self.right(name), name)
            # Short pieces of the ring are not registered before there is memory beside them.
            self.assertEqual(cuda.get("staged_bytes") < cuda.get("copied_bytes") / 2, bool(read_only))
            cuda.order(staged_bytes=0, copied_bytes=0)
            served.close()
            self.assertEqual(served.problems, [])

    def test_a_place_is_given_back_when_the_device_has_read_it_and_nobody_asks(self):
        released = queue.Queue()

        def serve(client):
            client.hear_open()
            ring = agent.Arena(4096 * self.PAGES)
            client.lend(self.model, ring=ring)
            _, _, content = self.model.tensors[3]
            ring.memory[4096 : 4096 + len(content)] = content
            client.say(agent.DELIVERED, agent.blob(1, agent.number(1, 3) + agent.number(2, 4096)))
            while (heard := client.hear()) is not None:
                if heard[0] == agent.RELEASE:
                    # As the next tensor would.
                    ring.memory[4096 : 4096 + len(content)] = bytes(len(content))
                    released.put(True)

        self.serve(serve)
        tensors = self.open(self.directory, stream=True)
        cuda.order(hold=1)
        copy = tensors["layers.3"].torch()
        self.assertRaises(queue.Empty, released.get, timeout=0.2)
        cuda.order(hold=0, delay_us=1000)
        released.get(timeout=cuda.PATIENCE)
        self.assertEqual(cuda.contents(copy), self.right("layers.3"))

    def test_the_next_agent_goes_on_through_a_ring_of_its_own(self):
        cuda.order(delay_us=500)
        self.serve(agent.streaming(self.model, self.PAGES, end=9), agent.streaming(self.model, self.PAGES))
        tensors = self.open(self.directory, stream=True)
        held = tensors["layers.0"].numpy()
        for name in tensors.offset_keys():
            self.assertEqual(cuda.contents(tensors[name].torch()), self.right(name), name)
        # In the first one's ring, of which nothing is registered any more.
        self.assertEqual(held.tobytes(), self.right("layers.0"))
        self.assertEqual(cuda.contents(tensors["layers.0"].torch()), self.right("layers.0"))


class Frameworks(cuda.WithDevice):
    def setUp(self):
        super().setUp()
        self.model = models.every_type((8, 16))
        self.path = models.write(self.at("x.safetensors"), self.model)
        served = agent.Agent(self.at("x.sock"), agent.lending(agent.Model({"x.safetensors": self.model}).fill()))
        self.addCleanup(served.close)
        self.tensors = self.open(self.path, agent=self.at("x.sock"))

    def right(self, name):
        return models.content(*self.model[name], list(self.model).index(name))

    def test_numpy_has_what_is_in_the_processors_memory(self):
        tensor = self.tensors["layer.F32"]
        for array in (tensor.numpy(), numpy.asarray(tensor)):
            self.assertEqual(array.tobytes(), self.right("layer.F32"))
        self.assertEqual(tensor.numpy().ctypes.data, tensor.__array_interface__["data"][0])
        self.assertEqual(cuda.get("copied_bytes"), 0)

    def test_bytes_of_types_that_torch_lacks(self):
        for name in self.model:
            raw = self.tensors[name].raw()
            self.assertEqual((raw.device, raw.dtype), ("cuda:0", "U8"))
            self.assertEqual(cuda.contents(raw.torch()), self.right(name), name)
        self.assertEqual(cuda.get("staged_bytes"), 0)
        self.refuses(weightd.Unsupported, ["layer.F6_E2M3", "raw()"], self.tensors["layer.F6_E2M3"].torch)

    def test_dlpack_says_where_it_is_and_gives_torchs_memory(self):
        tensor = self.tensors["layer.I16"]
        self.assertEqual(tensor.__dlpack_device__(), (2, 0))
        self.assertEqual(self.open(self.path, agent=False)["layer.I16"].__dlpack_device__(), (2, 0))
        for capsule in (tensor.__dlpack__(), tensor.__dlpack__(max_version=(1, 1)), tensor.__dlpack__(dl_device=(2, 0))):
            taken = torch.utils.dlpack.from_dlpack(capsule)
            self.assertEqual(cuda.contents(taken), self.right("layer.I16"))
        for options in ({"dl_device": (1, 0)}, {"dl_device": (2, 1)}, {"copy": False}):
            self.refuses(weightd.CannotShare, ["layer.I16"], lambda options=options: tensor.__dlpack__(**options))

    def test_safe_open_copies_as_open_does(self):
        with weightd.safe_open(self.path, "pt", device="cuda:1") as file:
            self.assertEqual(cuda.contents(file.get_tensor("layer.F32")), self.right("layer.F32"))
            copied = cuda.get("copied_bytes")
            self.assertEqual(copied, len(self.right("layer.F32")))
            part = file.get_slice("layer.F32")
            self.assertEqual((part.get_shape(), cuda.get("copied_bytes")), ([8, 16], copied))
            # What torch copies to a device there is none for, so the part is looked at before.
            with mock.patch.object(_safe_open, "_to_device", lambda part, *rest: part):
                rows = part[2:4]
            self.assertEqual(rows.device.type, "cpu")
            self.assertEqual(rows.numpy().tobytes(), self.right("layer.F32")[2 * 64 : 4 * 64])
            self.assertEqual(cuda.get("copied_bytes"), copied, "nothing but the part goes to the device")

    def test_model_servers_pass_the_device_on(self):
        servable = {name: kind for name, kind in self.model.items() if kind[0] in ("F32", "BF16", "I64")}
        path = models.write(self.at("y.safetensors"), servable)
        said = []
        for options in ({"device": "cuda", "agent": False}, {"device": "cuda:1", "agent": False}):
            self.assertEqual(_weights.Options(options).open, options)
            found = dict(_weights.weights([path], options, lambda name: True, lambda *words: said.append(words)))
            cuda.synchronize()
            for seed, (name, (dtype, shape)) in enumerate(servable.items()):
                self.assertEqual(cuda.as_bytes(found[name]), models.content(dtype, shape, seed), name)
        self.assertEqual(cuda.get("copied_bytes"), 2 * sum(len(models.content(*kind)) for kind in servable.values()))
        for device, kind in [("cuda:7", weightd.Unsupported), ("gpus", weightd.InvalidArgument)]:
            load = _weights.weights([path], {"device": device}, lambda name: True, print)
            self.refuses(kind, [device], lambda load=load: dict(load))

    def test_model_servers_stream_to_the_device(self):
        model = agent.Model({"x.safetensors": Rings.MODEL})
        directory = models.directory()
        self.addCleanup(directory.cleanup)
        models.write(f"{directory.name}/x.safetensors", Rings.MODEL)
        served = agent.Agent(f"{directory.name}/.weightd.sock", agent.streaming(model, Rings.PAGES))
        self.addCleanup(served.close)
        cuda.order(delay_us=300)
        load = _weights.weights([directory.name], {"device": "cuda", "stream": True}, lambda name: True, lambda *words: None)
        found = dict(load)
        cuda.synchronize()
        for seed, (name, (dtype, shape)) in enumerate(Rings.MODEL.items()):
            self.assertEqual(cuda.as_bytes(found[name]), models.content(dtype, shape, seed), name)
