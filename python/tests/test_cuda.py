"""Tensors on a CUDA device, with stand-ins for its driver and for what torch does there (cuda.py)."""

import gc
import json
import os
import sys
import threading
import time

import agent
import cuda
import models
import weightd
from weightd import _devices

KIB = 1 << 10
#: Two files: of every type, some longer than a registration at once, and what has no bytes.
TYPES = {name: kind for name, kind in models.every_type((8, 16)).items() if not name.split(".")[1].startswith("F8")}
MODEL = {
    "a.safetensors": {**TYPES, "long": ("F32", (75, 1000)), "scalar": ("F32", ()), "none": ("F16", (0, 5))},
    "b.safetensors": {f"layers.{at}": ("BF16", (40 + at, 999)) for at in range(4)},
}
WHERE = {name: (file, seed) for file, tensors in MODEL.items() for seed, name in enumerate(tensors)}
#: Types that this torch has.
NAMES = [name for name in WHERE if name.split(".")[-1] not in ("U16", "U32", "U64", "F4", "F6_E2M3", "F6_E3M2")]


def right(name):
    file, seed = WHERE[name]
    return models.content(*MODEL[file][name], seed)


class Device(cuda.WithDevice):
    def setUp(self):
        super().setUp()
        for file, tensors in MODEL.items():
            models.write(self.at(file), tensors)
        self.socket = self.at(".weightd.sock")
        self.model = agent.Model(MODEL)
        # Longer than what is too short to be registered, and shorter than most tensors here.
        _devices.REGISTERED_AT_ONCE_BYTES = 64 * KIB

    def serve(self, *serve):
        served = agent.Agent(self.socket, *serve or [agent.lending(self.model.fill(), complete=True)])
        self.addCleanup(served.close)
        self.addCleanup(lambda: self.assertEqual(served.problems, []))
        return served

    def lent(self, **options):
        tensors = self.open(self.directory, **options)
        self.assertEqual((tensors.how, tensors.why), ("stream" if options.get("stream") else "shared memory", None))
        return tensors

    def all_are_right(self, tensors):
        for name in NAMES:
            on_device = tensors[name].torch()
            self.assertEqual(tuple(on_device.shape), tensors[name].shape)
            self.assertEqual(cuda.contents(on_device), right(name), name)


class Copies(Device):
    def test_every_tensor_is_read_where_it_lies(self):
        self.serve()
        tensors = self.lent()
        self.assertEqual((tensors.device, tensors.transfer, tensors.transfer_why), ("cuda:0", "registered memory", None))
        self.assertEqual(tensors["long"].device, "cuda:0")
        with self.assertNoLogs():
            self.all_are_right(tensors)
        self.assertEqual(cuda.get("staged_bytes"), 0)
        # Both arenas, in pieces, each once.
        self.assertEqual(cuda.get("registered_bytes"), sum(arena.length for arena in self.model.arenas))
        self.assertEqual(cuda.get("largest_registration"), 64 * KIB)
        self.assertEqual(cuda.get("registered_total"), sum(-(-arena.length // (64 * KIB)) for arena in self.model.arenas))

    def test_who_uses_a_tensor_waits_for_its_copy_and_who_gets_it_does_not(self):
        self.serve()
        tensors = self.lent()
        cuda.order(hold=1)
        on_device = tensors["long"].torch()
        self.assertEqual(cuda.as_bytes(on_device), bytes(len(right("long"))))
        cuda.order(hold=0, delay_us=1000)
        self.assertEqual(cuda.contents(on_device), right("long"))
        # torch has it know which streams use the memory: the one that it allocated it for, and the caller's.
        self.assertEqual(cuda.Torch.lent, [(on_device.data_ptr(), cuda.STREAM)])
        ((address, stream),) = cuda.Torch.allocated
        self.assertEqual(address, on_device.data_ptr())
        self.assertNotIn(stream, (0, cuda.STREAM))

    def test_each_use_is_a_tensor_of_its_own(self):
        self.serve()
        tensors = self.lent()
        one, other = tensors["long"].torch(), tensors["long"].torch()
        cuda.synchronize()
        one.zero_()
        self.assertEqual(cuda.as_bytes(other), right("long"))

    def test_where_read_only_memory_cannot_be_registered_it_goes_through_buffers(self):
        cuda.order(read_only_register=0)
        self.serve()
        with self.assertLogs("weightd") as log:
            tensors = self.lent()
            self.all_are_right(tensors)
        self.assertEqual(len(log.output), 1)
        self.assertIn("read-only", log.output[0])
        self.assertEqual((tensors.transfer, cuda.get("registered_total")), ("staging buffers", 0))
        self.assertIn("read-only", tensors.transfer_why)

    def test_a_device_that_goes_by_the_processors_page_tables_is_not_told(self):
        cuda.order(read_only_register=0, host_page_tables=1)
        self.serve()
        tensors = self.lent()
        self.all_are_right(tensors)
        self.assertEqual((tensors.transfer, cuda.get("staged_bytes")), ("registered memory", 0))

    def test_when_registering_fails_half_way_the_rest_goes_through_buffers(self):
        cuda.order(fail_registration=3)
        self.serve()
        with self.assertLogs("weightd") as log:
            tensors = self.lent()
            self.assertEqual(tensors.transfer, "registered memory")
            self.all_are_right(tensors)
        self.assertEqual(len(log.output), 1)
        for words in ("cuda:0", "cuMemHostRegister_v2", "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"):
            self.assertIn(words, log.output[0])
            if words != "cuda:0":
                self.assertIn(words, tensors.transfer_why)
        self.assertEqual((tensors.transfer, cuda.get("registered_total")), ("staging buffers", 2))
        self.assertGreater(cuda.get("staged_bytes"), 0)
        self.assertLess(cuda.get("staged_bytes"), cuda.get("copied_bytes"))

    def test_mapped_files_go_through_buffers(self):
        with self.assertNoLogs():
            tensors = self.open(self.directory, agent=False)
            self.all_are_right(tensors)
        self.assertEqual((tensors.how, tensors.transfer), ("mapped files", "staging buffers"))
        self.assertIn("mapped files", tensors.transfer_why)
        self.assertEqual(cuda.get("registered_total"), 0)

    def test_tensors_that_are_longer_than_all_buffers(self):
        cuda.order(delay_us=20_000)
        # Of a length that divides no buffer's: one that is filled again too early is seen.
        content = os.urandom((1 << 20) + 7) * 101
        path = self.at("y.safetensors")
        with open(path, "wb") as file:
            entry = {"dtype": "U8", "shape": [len(content)], "data_offsets": [0, len(content)]}
            text = json.dumps({"a": entry}).encode()
            file.write(len(text).to_bytes(8, "little") + text + content)
        on_device = self.open(path, agent=False)["a"].torch()
        self.assertTrue(cuda.contents(on_device) == content)

    def test_memory_that_is_not_there_yet_is_left_alone(self):
        half = list(MODEL["b.safetensors"])[:2]
        last = list(WHERE).index(half[-1])

        def serve(client):
            client.hear_open()
            client.lend(self.model)
            self.model.fill(range(last + 1))
            # The last one is on a page with one that has not come.
            client.ready(last - 1, last + 2)
            client.until_it_ends()

        self.serve(serve)
        _devices.REGISTERED_AT_ONCE_BYTES = 1 << 20
        tensors = self.lent()
        tensors.wait(half)
        before = [os.fstat(arena.descriptor).st_blocks for arena in self.model.arenas]
        for name in half:
            self.assertEqual(cuda.contents(tensors[name].torch()), right(name))
        self.assertGreater(cuda.get("registered_bytes"), 0)
        self.assertEqual([os.fstat(arena.descriptor).st_blocks for arena in self.model.arenas], before)

    def test_a_tensor_is_copied_while_others_arrive(self):
        arrived, first = threading.Event(), len(MODEL["a.safetensors"])

        def serve(client):
            client.hear_open()
            client.lend(self.model)
            self.model.fill(range(first))
            client.ready(0, first)
            arrived.wait(cuda.PATIENCE)
            self.model.fill()
            client.ready(first, len(self.model.tensors))
            client.until_it_ends()

        self.serve(serve)
        tensors = self.lent()
        self.assertEqual(cuda.contents(tensors["long"].torch()), right("long"))
        self.assertGreater(cuda.get("registered_bytes"), 0)
        self.assertFalse(tensors["layers.1"].ready)
        threading.Timer(0.1, arrived.set).start()
        self.all_are_right(tensors)

    def test_the_next_agent_brings_what_is_missing(self):
        def first(client):
            client.hear_open()
            client.lend(self.model)
            self.model.fill(range(0, 12))
            client.ready(0, 12)
            client.hear_want()

        again = agent.Model(MODEL).fill()
        self.serve(first, agent.lending(again, complete=True))
        tensors = self.lent()
        cuda.order(delay_us=500)
        early = {name: tensors[name].torch() for name in list(WHERE)[:12] if name in NAMES}
        self.all_are_right(tensors)
        for name, on_device in early.items():
            self.assertEqual(cuda.as_bytes(on_device), right(name), name)

    def test_what_is_copied_outlives_what_it_was_opened_by(self):
        self.serve()
        for options in ({}, {"stream": True}, {"agent": False}):
            if options.get("stream"):
                self.socket = self.at("other.sock")
                self.serve(agent.streaming(self.model, 100))
                options = {**options, "agent": self.socket}
            cuda.order(hold=1)
            with self.open(self.directory, **options) as tensors:
                on_device = tensors["long"].torch()
            del tensors
            gc.collect()
            cuda.order(hold=0, delay_us=1000)
            self.assertEqual(cuda.contents(on_device), right("long"), options)

    def test_bytes_that_were_wrong_are_told(self):
        def first(client):
            client.hear_open()
            client.lend(self.model)
            self.model.fill()
            file, offset, _ = self.model.tensors[list(WHERE).index("long")]
            self.model.arenas[file].memory[offset] ^= 1
            client.ready(0, len(self.model.tensors))
            client.hear_want()
            client.fail("corrupt", "the object is not what the origin has")

        self.serve(first, agent.lending(agent.Model(MODEL).fill(), complete=True))
        tensors = self.lent()
        self.assertNotEqual(cuda.contents(tensors["long"].torch()), right("long"))
        self.refuses(weightd.InvalidFile, ["long", "not what the origin has"], lambda: tensors.wait(verified=True))

    def test_threads_copy_at_once(self):
        self.serve()
        cuda.order(delay_us=200)
        for read_only in (1, 0):
            cuda.order(read_only_register=read_only)
            tensors, wrong = self.lent(), []

            def use(names, tensors=tensors, wrong=wrong):
                copies = [(name, tensors[name].torch()) for name in names]
                cuda.until(lambda: all(cuda.as_bytes(copy) == right(name) for name, copy in copies))
                wrong.append(None)

            threads = [threading.Thread(target=use, args=[NAMES[at::2] + ["long"]]) for at in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(len(wrong), 3)
            cuda.synchronize()

    def test_ninety_thousand_small_tensors(self):
        many = {f"e.{at}": ("F32", (16,)) for at in range(90_000)}
        path = models.write(self.at("many.safetensors"), many)
        for options in ({"agent": False}, {"agent": self.at("many.sock")}):
            if options["agent"]:
                served = agent.Agent(self.at("many.sock"), agent.lending(agent.Model({"many.safetensors": many}).fill()))
                self.addCleanup(served.close)
            tensors = self.open(path, **options)
            all_of_them = tensors.values()
            begun = time.perf_counter()
            copies = [tensor.torch() for tensor in all_of_them]
            seconds = time.perf_counter() - begun
            cuda.synchronize()
            for at in (0, 1, 44_444, 89_999):
                name = all_of_them[at].name
                self.assertEqual(cuda.as_bytes(copies[at]), models.content("F32", (16,), int(name[2:])))
            print(f"90,000 tensors, {tensors.transfer}: {seconds:.2f} s", file=sys.stderr)
            self.assertLess(seconds, 30)
