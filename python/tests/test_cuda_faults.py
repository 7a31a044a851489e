"""What goes wrong between a tensor and its CUDA device (cuda.py), and who may wait for what."""

import os
import signal
import subprocess
import sys
import threading

import agent
import cuda
import models
import torch
import weightd
from weightd import _devices

KIB = 1 << 10
MODEL = {f"layers.{at}": ("F32", (100, 256)) for at in range(12)}


def right(name):
    return models.content(*MODEL[name], list(MODEL).index(name))


class Interrupt(Exception):
    pass


class Faults(cuda.WithDevice):
    def setUp(self):
        super().setUp()
        self.path = models.write(self.at("x.safetensors"), MODEL)
        self.model = agent.Model({"x.safetensors": MODEL}).fill()

    def serve(self):
        served = agent.Agent(self.at(".weightd.sock"), agent.lending(self.model))
        self.addCleanup(served.close)
        return served

    def run_alone(self, code):
        """Runs a program of its own, not where the package's sources may be found first."""
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=self.directory)

    def test_a_device_that_is_not_there_is_told_before_anybody_is_asked(self):
        served = self.serve()
        cuda.order(devices=1)
        for device in ("cuda:1", torch.device("cuda", 3)):
            self.refuses(weightd.Unsupported, [str(device), "has 1"], lambda device=device: weightd.open(self.path, device=device))
        self.assertTrue(served.ended.empty())
        cuda.order(devices=0)
        self.refuses(TypeError, ["cuda:0", "CUDA_VISIBLE_DEVICES"], lambda: weightd.open(self.path, device="cuda"))

    def test_words_that_are_no_device_are_refused_with_those_that_are(self):
        for device in ("cudo", "cuda:x", "cuda:-1", "", "CUDA", "cuda:", 0, 1.5, b"cuda", ["cuda"], torch.device("meta")):
            words = ["device", "'cuda:1'", "'tpu'", "torch.device"]
            self.refuses(weightd.InvalidArgument, words, lambda device=device: weightd.open(self.path, device=device))

    def test_the_processor_is_a_device_too(self):
        for device in (None, "cpu", "cpu:0", torch.device("cpu")):
            tensors = weightd.open(self.path, device=device)
            self.assertEqual((tensors.device, tensors.transfer, tensors.transfer_why), ("cpu", None, None))
            self.assertEqual(tensors["layers.0"].device, "cpu")
            self.assertEqual(tensors["layers.0"].torch().data_ptr(), tensors["layers.0"].__array_interface__["data"][0])

    def test_devices_are_counted_as_torch_counts_them(self):
        self.assertEqual(weightd.open(self.path, device="cuda:1").device, "cuda:1")
        self.assertEqual(weightd.open(self.path, device=torch.device("cuda:1"))["layers.1"].device, "cuda:1")
        self.assertEqual(weightd.open(self.path, device=torch.device("cuda")).device, "cuda:0")

    def test_a_driver_that_is_not_there_is_told(self):
        code = (
            "import ctypes, sys, weightd\n"
            "try: ctypes.CDLL('libcuda.so.1')\n"
            "except OSError: pass\n"
            "else: sys.exit('a real driver is here')\n"
            f"try: weightd.open({self.path!r}, device='cuda')\n"
            "except weightd.Unsupported as error: sys.exit(str(error))\n"
        )
        done = self.run_alone(code)
        if "a real driver" not in done.stderr:
            for words in ("cuda:0", "libcuda.so.1", "is it installed"):
                self.assertIn(words, done.stderr)

    def test_a_torch_without_cuda_is_told(self):
        tensors = self.open(self.path)
        cuda._cuda.Torch = self.torch_of_its_own
        self.refuses(weightd.Unsupported, ["cuda:0", "torch"], tensors["layers.0"].torch)

    def test_a_copy_that_the_driver_refuses_names_what_and_where(self):
        self.serve()
        for after in (1, 2):
            # Of the second piece of a tensor: the first is on its way.
            _devices.REGISTERED_AT_ONCE_BYTES = 64 * KIB
            tensors = self.open(self.directory)
            tensors["layers.3"].torch()
            cuda.order(fail_copy=after, delay_us=2000)
            words = ["x.safetensors", '"layers.5"', "cuda:0", "cuMemcpyHtoDAsync_v2", "CUDA_ERROR_ILLEGAL_ADDRESS", "illegal"]
            self.refuses(weightd.DeviceFailed, words, tensors["layers.5"].torch)
            with self.assertRaises(RuntimeError):
                cuda.order(fail_copy=1)
                tensors["layers.6"].torch()
            self.assertEqual(cuda.contents(tensors["layers.5"].torch()), right("layers.5"))

    def test_a_copy_that_fails_later_is_told_to_whoever_comes_next(self):
        self.serve()
        tensors = self.open(self.directory)
        cuda.order(fail_wait=1)
        tensors["layers.0"].torch()
        cuda.until(lambda: cuda.get("fail_wait") == 0)

        def next_one():
            tensors["layers.1"].torch()
            return False

        def failed():
            try:
                return next_one()
            except weightd.DeviceFailed as error:
                self.assertIn("earlier copy", str(error))
                self.assertIn("CUDA_ERROR_ILLEGAL_ADDRESS", str(error))
                return True

        cuda.until(failed)
        # It is the process's device that failed, if it did; who opens anew asks it anew.
        self.assertEqual(cuda.contents(self.open(self.directory)["layers.1"].torch()), right("layers.1"))

    def test_without_memory_for_buffers_it_is_told(self):
        cuda.order(fail_host_alloc=1)
        tensor = self.open(self.path)["layers.0"]
        self.refuses(weightd.DeviceFailed, ["layers.0", "cuMemHostAlloc", "out of memory"], tensor.torch)
        self.assertEqual(cuda.contents(tensor.torch()), right("layers.0"))

    def test_a_device_without_room_is_torchs_to_tell(self):
        def allocate(self, shape, dtype, stream):
            raise RuntimeError("CUDA out of memory")

        self.serve()
        tensors = self.open(self.directory)
        allocated = cuda.Torch.allocate
        self.addCleanup(setattr, cuda.Torch, "allocate", allocated)
        cuda.Torch.allocate = allocate
        for _ in range(3):
            self.refuses(RuntimeError, ["out of memory"], tensors["layers.0"].torch)
        cuda.Torch.allocate = allocated
        self.assertEqual(cuda.contents(tensors["layers.0"].torch()), right("layers.0"))

    def test_who_runs_ahead_waits_for_room_and_hears_signals(self):
        self.serve()
        one = len(right("layers.0"))
        _devices.IN_FLIGHT_BYTES = 3 * one
        tensors = self.open(self.directory)
        cuda.order(hold=1)
        copies = [tensors[f"layers.{at}"].torch() for at in range(3)]

        def interrupt(*_):
            raise Interrupt

        self.addCleanup(signal.signal, signal.SIGALRM, signal.signal(signal.SIGALRM, interrupt))
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        self.assertRaises(Interrupt, tensors["layers.3"].torch)
        threading.Timer(0.1, lambda: cuda.order(hold=0)).start()
        copies += [tensors[f"layers.{at}"].torch() for at in range(3, 12)]
        cuda.synchronize()
        for at, copy in enumerate(copies):
            self.assertEqual(cuda.as_bytes(copy), right(f"layers.{at}"))
        self.assertLessEqual(cuda.get("most_in_flight_bytes"), 3 * one)

    def test_a_tensor_that_is_longer_than_all_that_may_be_on_its_way(self):
        self.serve()
        _devices.IN_FLIGHT_BYTES = 1
        cuda.order(delay_us=200)
        tensors = self.open(self.directory)
        for name in MODEL:
            self.assertEqual(cuda.contents(tensors[name].torch()), right(name))

    def test_a_process_that_ends_waits_for_its_copies(self):
        self.serve()
        code = (
            "import atexit, sys\n"
            "def last():\n"
            "    print('on their way:', cuda.get('in_flight'), 'copied:', cuda.get('copied_bytes'))\n"
            "    cuda.order(ended=1)\n"
            "atexit.register(last)\n"
            f"sys.path.insert(0, {os.path.dirname(os.path.abspath(__file__))!r})\n"
            "import cuda, weightd\n"
            "cuda._cuda.Torch = cuda.Torch\n"
            "cuda.order(delay_us=20000)\n"
            f"tensors = weightd.open({self.directory!r}, device='cuda')\n"
            "copies = [tensor.torch() for tensor in tensors.values()]\n"
        )
        done = self.run_alone(code)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(done.stdout.strip(), f"on their way: 0 copied: {len(MODEL) * len(right('layers.0'))}")

    def test_a_process_that_was_forked_off_is_told_and_does_no_harm(self):
        self.serve()
        tensors = self.open(self.directory)
        cuda.order(delay_us=2000)
        before = tensors["layers.0"].torch()
        child = os.fork()
        if child == 0:
            wrong = 0
            for kind, call in [
                (weightd.DeviceFailed, tensors["layers.1"].torch),
                (weightd.Unsupported, lambda: self.open(self.directory)),
            ]:
                try:
                    call()
                    wrong += 1
                except kind as error:
                    wrong += "spawn" not in str(error)
            wrong += tensors["layers.2"].numpy().tobytes() != right("layers.2")
            tensors.close()
            del tensors
            wrong += not cuda.driver.standin_is_clean()
            os._exit(wrong)
        self.assertEqual(os.waitpid(child, 0)[1], 0)
        self.assertEqual(cuda.contents(before), right("layers.0"))
        self.assertEqual(cuda.contents(tensors["layers.1"].torch()), right("layers.1"))
