"""Tensors that an agent lends: where it is found, what is waited for, and what happens when it ends."""

import gc
import os
import pathlib
import signal
import threading
import time

import agent
import models
import numpy
import weightd

ONE = {"a": ("F32", (64, 64)), "b": ("BF16", (4,))}
TWO = {"c": ("I64", (3,)), "d": ("F16", (0, 5))}
FILES = {"1.safetensors": ONE, "2.safetensors": TWO}
#: Tensors that share no page with another one.
PAGES = {name: ("U8", (4096,)) for name in "abc"}


def right(dtype, shape, seed=0):
    return models.content(dtype, shape, seed)


class WithAgent(models.WithDirectory):
    """A test with a volume, which has the files in it too."""

    def setUp(self):
        super().setUp()
        self.socket = self.at(".weightd.sock")
        for name, tensors in FILES.items():
            models.write(self.at(name), tensors, {"format": "pt"})

    def serve(self, *serve, path=None):
        served = agent.Agent(path or self.socket, *serve)
        self.addCleanup(served.close)
        self.addCleanup(lambda: self.assertEqual(served.problems, []))
        return served

    def in_background(self, call, *arguments):
        """Calls it in a thread; what is returned waits for the outcome."""
        outcome = []
        thread = threading.Thread(target=lambda: outcome.append(call(*arguments)))
        thread.start()

        def result():
            thread.join(20)
            self.assertFalse(thread.is_alive())
            return outcome[0]

        return result


class Finding(WithAgent):
    def how(self, path):
        with weightd.open(path) as tensors:
            return tensors.how

    def test_a_volume_is_opened_at_its_socket(self):
        asked = []
        lend = agent.lending(agent.Model(FILES, metadata={"format": "pt"}).fill())
        self.serve(lambda client: (lend(client), asked.append(client.opened)))
        with weightd.open(self.directory) as tensors:
            self.assertEqual((tensors.how, tensors.why), ("shared memory", None))
            self.assertEqual(tensors.keys(), ["a", "b", "c", "d"])
            self.assertEqual(tensors.offset_keys(), ["a", "b", "c", "d"])
            self.assertEqual(tensors.metadata(), {"format": "pt"})
            self.assertEqual(tensors.path, pathlib.Path(self.directory))
            self.assertEqual(tensors.files, [pathlib.Path(self.at(name)) for name in FILES])
            tensor = tensors["b"]
            self.assertEqual((tensor.name, tensor.dtype, tensor.shape, tensor.nbytes), ("b", "BF16", (4,), 8))
            self.assertEqual(tensor.file, pathlib.Path(self.at("1.safetensors")))
            self.assertTrue(tensor.ready)
            self.assertEqual(tensor.raw().numpy().tobytes(), right("BF16", (4,), 1))
            self.assertEqual(tensors["c"].numpy().tolist(), numpy.frombuffer(right("I64", (3,)), "<i8").tolist())
            self.assertEqual(tensors["d"].numpy().shape, (0, 5))
            self.assertIn("4 tensors, shared memory", repr(tensors))
        del tensor
        while not asked:
            gc.collect()
        self.assertEqual(asked[0], {"version": 1, "source": "", "files": list(FILES)})

    def test_files_and_directories_in_a_volume_are_asked_for_by_where_they_are(self):
        os.makedirs(self.at("deep/er"))
        models.write(self.at("deep/er/3.safetensors"), ONE)
        asked = []

        def serve(client):
            asked.append(client.hear_open()["files"])
            client.lend(agent.Model({asked[-1][0]: ONE}).fill(), True)
            client.until_it_ends()

        self.serve(serve)
        os.symlink(self.at("deep"), self.at("link"))
        for path, file in [
            (self.at("2.safetensors"), "2.safetensors"),
            (self.at("deep/er"), "deep/er/3.safetensors"),
            (self.at("deep/er/3.safetensors"), "deep/er/3.safetensors"),
            (self.at("link/er"), "deep/er/3.safetensors"),
        ]:
            with weightd.open(path) as tensors:
                self.assertEqual(tensors.how, "shared memory")
                name = path if path.endswith("safetensors") else os.path.join(path, "3.safetensors")
                self.assertEqual(tensors["a"].file, pathlib.Path(name))
            self.assertEqual(asked.pop(), [file])

    def test_an_index_says_which_files_are_asked_for(self):
        model = agent.Model({"2.safetensors": TWO}).fill()
        self.serve(agent.lending(model))
        index = self.at("model.safetensors.index.json")
        pathlib.Path(index).write_text('{"weight_map": {"c": "2.safetensors"}}')
        self.assertEqual(weightd.open(self.directory).keys(), ["c", "d"])
        pathlib.Path(index).write_text('{"weight_map": {"z": "2.safetensors"}}')
        self.refuses(weightd.InvalidFile, [index, '"z"'], weightd.open, self.directory)

    def test_a_tensor_that_two_files_have_is_refused(self):
        self.serve(agent.lending(agent.Model({"1.safetensors": ONE, "2.safetensors": ONE})))
        self.refuses(weightd.InvalidFile, ['"a"', *map(self.at, FILES)], weightd.open, self.directory)

    def test_without_an_agent_files_are_mapped(self):
        with weightd.open(self.directory) as tensors:
            self.assertEqual(tensors.how, "mapped files")
            self.assertIn(".weightd.sock", tensors.why)
            self.assertTrue(tensors["a"].ready)
            tensors.wait()
        # What the store has in the socket's place.
        pathlib.Path(self.socket).touch()
        self.assertEqual(self.how(self.directory), "mapped files")

    def test_where_nobody_answers_files_are_mapped_and_the_log_says_why(self):
        served = agent.Agent(self.socket, agent.Client.hear_open)
        served._socket.close()
        with self.assertLogs("weightd", "WARNING") as log:
            tensors = weightd.open(self.directory)
        self.assertEqual(tensors.how, "mapped files")
        self.assertIn(self.socket, tensors.why)
        self.assertIn(tensors.why, log.output[0])
        self.assertEqual(tensors["a"].numpy().tobytes(), right("F32", (64, 64)))

    def test_an_agent_that_never_answers_is_not_waited_for_for_long(self):
        self.serve(agent.Client.until_it_ends)
        with self.assertLogs("weightd", "WARNING"):
            tensors = weightd.open(self.directory)
        self.assertEqual(tensors.how, "mapped files")
        self.assertIn("answered", tensors.why)

    def test_an_agent_without_room_leaves_the_files(self):
        self.serve(lambda client: client.fail("memory", "x does not fit", "raise the limit"))
        with self.assertLogs("weightd", "WARNING"):
            tensors = weightd.open(self.directory)
        self.assertEqual((tensors.how, tensors.why), ("mapped files", "x does not fit; raise the limit"))

    def test_other_failures_are_raised(self):
        for kind, exception in [
            ("corrupt", weightd.InvalidFile),
            ("not found", FileNotFoundError),
            ("not permitted", PermissionError),
            ("usage", weightd.AgentFailed),
            ("unavailable", OSError),
        ]:
            served = agent.Agent(self.socket, lambda client, kind=kind: client.fail(kind, "no,\nit is", "mend it"))
            self.refuses(exception, [self.directory, "no, it is", "mend it"], weightd.open, self.directory)
            served.close()

    def test_what_an_agent_must_not_say_is_raised(self):
        self.serve(lambda client: client.say(agent.READY, b""))
        self.refuses(weightd.AgentFailed, [self.socket, "order"], weightd.open, self.directory)

    def test_files_that_were_not_asked_for_are_refused(self):
        self.serve(agent.lending(agent.Model({"3.safetensors": ONE})))
        self.refuses(weightd.AgentFailed, ["3.safetensors"], weightd.open, self.directory)

    def test_no_agent_is_asked_when_none_shall_be(self):
        self.serve(agent.lending(agent.Model(FILES).fill()))
        tensors = weightd.open(self.directory, agent=False)
        self.assertEqual((tensors.how, tensors.why), ("mapped files", "agent=False"))

    def test_a_directory_that_everybody_may_write_to_is_no_volume(self):
        self.serve(agent.lending(agent.Model(FILES).fill()))
        os.mkdir(self.at("mine"), 0o755)
        models.write(self.at("mine/3.safetensors"), ONE)
        os.chmod(self.directory, 0o1777)
        self.assertEqual(self.how(self.at("mine")), "mapped files")

    def test_an_agent_that_is_named_must_answer(self):
        lend = agent.lending(agent.Model(FILES).fill())
        named = self.at("named.sock")
        self.refuses(weightd.NoAgent, [named], lambda: weightd.open(self.directory, agent=named))
        self.serve(lend, path=named)
        self.assertEqual(weightd.open(self.directory, agent=pathlib.Path(named)).how, "shared memory")
        os.mkdir(self.at("elsewhere"))
        self.serve(lend, path=self.at("elsewhere/x.sock"))
        elsewhere = self.at("elsewhere/x.sock")
        self.refuses(weightd.Unsupported, [elsewhere], lambda: weightd.open(self.directory, agent=elsewhere))

    def test_safe_open_borrows_too(self):
        self.serve(agent.lending(agent.Model({"1.safetensors": ONE}).fill()))
        with weightd.safe_open(self.at("1.safetensors"), "np") as file:
            self.assertEqual(file.get_tensor("a").tobytes(), right("F32", (64, 64)))
        gc.collect()
        self.assertFalse(models.is_mapped(self.at("1.safetensors")))


class Uris(WithAgent):
    URI = "gs://models/x"

    def test_a_uri_is_opened_at_the_socket_of_the_node(self):
        node, asked = self.at("node.sock"), []

        def serve(client):
            asked.append(client.hear_open())
            client.lend(agent.Model(FILES).fill(), True)
            client.until_it_ends()

        self.serve(serve, path=node)
        os.environ["WEIGHTD_HANDOFF_SOCKET"] = node
        self.addCleanup(os.environ.pop, "WEIGHTD_HANDOFF_SOCKET")
        for tensors in weightd.open(self.URI), weightd.open(self.URI, agent=node):
            self.assertEqual((tensors.how, tensors.path), ("shared memory", self.URI))
            self.assertEqual(tensors.files, [f"{self.URI}/{name}" for name in FILES])
            self.assertEqual(tensors["c"].file, f"{self.URI}/2.safetensors")
            self.assertEqual(tensors["a"].numpy().tobytes(), right("F32", (64, 64)))
            self.refuses(weightd.TensorNotFound, [self.URI, '"z"'], tensors.__getitem__, "z")
        self.assertEqual(asked[0], {"version": 1, "source": self.URI, "files": []})

    def test_without_an_agent_it_is_told_what_to_do(self):
        missing = self.at("missing.sock")
        words = [self.URI, missing, "WEIGHTD_HANDOFF_SOCKET", "weightctl mount"]
        self.refuses(ConnectionError, words, lambda: weightd.open(self.URI, agent=missing))
        self.refuses(weightd.NotFound, [self.URI, "weightctl mount"], lambda: weightd.open(self.URI, agent=False))

    def test_a_model_without_room_has_no_files_to_fall_back_to(self):
        node = self.at("node.sock")
        self.serve(lambda client: client.fail("memory", "x does not fit"), path=node)
        self.refuses(MemoryError, [self.URI, "x does not fit"], lambda: weightd.open(self.URI, agent=node))


class Waiting(WithAgent):
    def setUp(self):
        super().setUp()
        models.write(self.at("1.safetensors"), PAGES)
        os.unlink(self.at("2.safetensors"))
        self.model = agent.Model({"1.safetensors": PAGES})
        self.wants, self.go = [], threading.Semaphore(0)

    def on_request(self, verified=False, end=None):
        """Brings one tensor of what is wanted whenever it may go on; ends after so many."""

        def serve(client):
            client.hear_open()
            client.lend(self.model)
            brought = 0
            while brought != end and (want := client.hear_want()) is not None:
                self.wants.append(want)
                for position in (at for start, stop in want for at in range(start, stop)):
                    self.go.acquire()
                    self.model.fill([position])
                    client.ready(position, position + 1, verified)
                    brought += 1

        return serve

    def test_using_a_tensor_waits_for_it_and_other_threads_run(self):
        self.serve(self.on_request())
        tensors = weightd.open(self.directory)
        for position, (name, use) in enumerate(
            {
                "a": lambda tensor: tensor.numpy().tobytes(),
                "b": lambda tensor: numpy.from_dlpack(tensor).tobytes(),
                "c": lambda tensor: numpy.asarray(tensor).tobytes(),
            }.items()
        ):
            tensor = tensors[name]
            self.assertFalse(tensor.ready)
            used = self.in_background(use, tensor)
            while len(self.wants) <= position:
                time.sleep(0.001)
            self.assertFalse(tensor.ready)
            self.go.release()
            self.assertEqual(used(), right("U8", (4096,), position))
            self.assertTrue(tensor.ready)
        self.assertEqual(self.wants, [[(at, at + 1)] for at in range(3)])

    def test_whoever_waits_can_be_interrupted(self):
        # What a shell starts in the background ignores it, and so does Python then.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.addCleanup(signal.signal, signal.SIGINT, before)
        self.serve(self.on_request(end=0))
        tensors = weightd.open(self.directory)
        # No other agent comes, so it waits for that one now.
        for _ in range(2):
            threading.Timer(0.1, signal.raise_signal, [signal.SIGINT]).start()
            with self.assertRaises(KeyboardInterrupt):
                tensors["a"].numpy()
        node = self.at("node.sock")
        self.serve(agent.Client.until_it_ends, path=node)
        threading.Timer(0.1, signal.raise_signal, [signal.SIGINT]).start()
        with self.assertRaises(KeyboardInterrupt):
            weightd.open("gs://models/x", agent=node)

    def test_what_is_waited_for_is_asked_for_in_that_order(self):
        self.serve(self.on_request())
        self.go.release(3)
        tensors = weightd.open(self.directory)
        tensors.wait(["c", "a"])
        self.assertTrue(tensors["a"].ready and tensors["c"].ready and not tensors["b"].ready)
        tensors.wait()
        self.assertEqual(self.wants, [[(2, 3), (0, 1)], [(1, 2)]])
        self.refuses(KeyError, ['"z"'], tensors.wait, ["a", "z"])

    def test_verified_waits_until_it_is(self):
        self.serve(self.on_request(verified=True))
        self.go.release(3)
        tensors = weightd.open(self.directory, verified=True)
        tensors.wait()
        self.assertEqual(self.wants, [[(0, 3)]])

    def test_what_is_written_before_the_rest_has_come_harms_nothing(self):
        self.model = agent.Model({"1.safetensors": {"a": ("U8", (300,)), "b": ("U8", (300,))}})

        def serve(client):
            client.hear_open()
            client.lend(self.model)
            self.wants.append(client.hear_want())
            self.model.fill([0])
            client.ready(0, 1)
            self.go.acquire()
            self.model.fill([1])
            client.ready(1, 2)
            client.until_it_ends()

        self.serve(serve)
        tensors = weightd.open(self.directory)
        written = self.in_background(lambda: tensors["a"].numpy().fill(7))
        while not self.wants:
            time.sleep(0.001)
        self.assertFalse(tensors["a"].ready)
        self.go.release()
        written()
        self.assertEqual(tensors["b"].numpy().tobytes(), right("U8", (300,), 1))
        self.assertEqual(set(tensors["a"].numpy().tolist()), {7})

    def test_a_failure_is_raised_by_who_waits_and_what_was_ready_stays(self):
        def serve(client):
            client.hear_open()
            client.lend(self.model.fill([0]))
            client.ready(0, 1)
            client.hear_want()
            client.fail("unavailable", "gs://models/x cannot be reached", "wait")

        self.serve(serve)
        tensors = weightd.open(self.directory)
        self.refuses(weightd.AgentFailed, [self.directory, "cannot be reached", "wait"], tensors["b"].raw)
        self.assertEqual(tensors["a"].numpy().tobytes(), right("U8", (4096,)))

    def test_the_next_agent_brings_what_the_last_one_did_not(self):
        after = agent.Model({"1.safetensors": PAGES})
        self.go.release(1)
        self.serve(self.on_request(end=1), agent.lending(after, complete=False))
        tensors = weightd.open(self.directory)
        first = tensors["a"].numpy()
        first[0] = 99
        self.assertEqual(tensors["c"].numpy().tobytes(), right("U8", (4096,), 2))
        # It is the memory that it was, with what was written to it.
        self.assertEqual(tensors["a"].numpy()[0], 99)
        self.assertEqual(tensors["a"].numpy().ctypes.data, first.ctypes.data)
        threads = [self.in_background(lambda: tensors["b"].numpy().tobytes()) for _ in range(4)]
        for result in threads:
            self.assertEqual(result(), right("U8", (4096,), 1))

    def test_another_model_in_its_place_is_told(self):
        self.go.release(1)
        other = agent.Model({"1.safetensors": PAGES}, snapshot="07aa.aligned")
        self.serve(self.on_request(end=1), agent.lending(other))
        tensors = weightd.open(self.directory)
        tensors["a"].raw()
        self.refuses(weightd.AgentFailed, ["5f0c.aligned", "07aa.aligned"], tensors["b"].raw)
        tensors["a"].raw()

    def test_a_process_that_is_forked_off_has_a_lease_of_its_own(self):
        model = agent.Model({"1.safetensors": PAGES})
        self.serve(agent.lending(model, complete=False))
        tensors = weightd.open(self.directory)
        tensors["a"].raw()
        child = os.fork()
        if child == 0:
            wrong = tensors["a"].numpy().tobytes() != right("U8", (4096,))
            wrong |= tensors["b"].numpy().tobytes() != right("U8", (4096,), 1)
            os._exit(wrong)
        self.assertEqual(os.waitpid(child, 0)[1], 0)
        self.assertEqual(tensors["c"].numpy().tobytes(), right("U8", (4096,), 2))


class Lifetime(WithAgent):
    def test_the_lease_lasts_as_long_as_the_last_array(self):
        served = self.serve(agent.lending(agent.Model(FILES).fill()))
        tensors = weightd.open(self.directory)
        arrays = [tensors["a"].numpy(), numpy.from_dlpack(tensors["a"]), numpy.asarray(tensors["a"])]
        capsule = tensors["c"].__dlpack__()
        tensors.close()
        del tensors
        while arrays:
            gc.collect()
            self.assertTrue(served.ended.empty())
            self.assertEqual(arrays.pop().tobytes(), right("F32", (64, 64)))
        gc.collect()
        self.assertTrue(served.ended.empty())
        del capsule
        self.assertTrue(served.ended.get(timeout=20))
        with open("/proc/self/maps") as maps:
            mine = [line for line in maps if "memfd:arena" in line and "rw-p" in line]
        self.assertEqual(mine, [])

    def test_each_process_writes_to_pages_of_its_own(self):
        model = agent.Model(FILES).fill()
        self.serve(agent.lending(model))
        mine, others = weightd.open(self.directory), weightd.open(self.directory)
        mine["a"].numpy()[:] = 7
        self.assertTrue((mine["a"].numpy() == 7).all())
        self.assertEqual(others["a"].numpy().tobytes(), right("F32", (64, 64)))
        self.assertEqual(model.arenas[0].memory[: 64 * 64 * 4], right("F32", (64, 64)))
        self.assertEqual(mine["a"].__array_interface__["data"][0] % 4096, 0)
