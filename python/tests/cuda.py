"""Devices that are none: the stand-in for the CUDA driver, and processor memory where torch would have a device's.

The torch that the tests have knows no CUDA. What `weightd._cuda.Torch` asks of it is played here, and nothing else is: which
memory is copied where, when, and what waits for it, is what is run on a device.
"""

import ctypes
import gc
import os
import subprocess
import tempfile
import time

import models
import torch
import weightd
from weightd import _cuda, _devices

#: The stream of whoever uses the tensors.
STREAM = 0x5EED
PATIENCE = 10


def _built():
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "stand_ins/cuda/libcuda.c")
    with tempfile.TemporaryDirectory() as place:
        library = os.path.join(place, "libcuda.so.1")
        flags = ["-O2", "-fPIC", "-shared", "-pthread", "-Wl,-soname,libcuda.so.1"]
        subprocess.run(["cc", *flags, "-o", library, source], check=True)
        # From now on it is what `dlopen` finds under that name, in this process and those that it forks off.
        return ctypes.CDLL(library)


driver = _built()
driver.standin_get.restype = ctypes.c_long
driver.standin_get.argtypes = [ctypes.c_char_p]
driver.standin_set.argtypes = [ctypes.c_char_p, ctypes.c_long]
driver.standin_synchronize.argtypes = [ctypes.c_void_p]


def get(name):
    return driver.standin_get(name.encode())


def order(**values):
    for name, value in values.items():
        driver.standin_set(name.encode(), value)


def violation():
    text = ctypes.create_string_buffer(512)
    driver.standin_violation(text, len(text))
    return text.value.decode()


def synchronize():
    """Waits for what work on the caller's stream would wait for."""
    driver.standin_synchronize(STREAM)
    Torch.kept.clear()


class Stream:
    cuda_stream = STREAM


class Torch:
    """What is asked of torch for a device."""

    lent = []
    allocated = []
    #: torch gives memory of a device to others when the streams that use it are done, whoever lets go of it before.
    kept = []

    def __init__(self, number):
        self.number = number

    def current(self):
        return Stream

    def empty(self, shape, dtype):
        return torch.zeros(shape, dtype=dtype)

    def allocate(self, shape, dtype, stream):
        made = self.empty(shape, dtype)
        self.allocated.append((made.data_ptr(), stream))
        self.kept.append(made)
        return made

    def lend(self, tensor, stream):
        self.lent.append((tensor.data_ptr(), stream.cuda_stream))


def until(condition):
    """Waits for what another thread is about to do."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it does not come to pass"
        time.sleep(0.001)


def contents(tensor):
    """Bytes of a tensor once its copy is over, as whoever works on the caller's stream sees them."""
    synchronize()
    return as_bytes(tensor)


def as_bytes(tensor):
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


class WithDevice(models.WithDirectory):
    """A test with a device, which nothing of the test may be left on."""

    ORDERED = ("devices", "read_only_register", "host_page_tables", "max_pitch", "delay_us", "hold")
    FAULTS = ("fail_registration", "fail_copy", "fail_wait", "fail_host_alloc")
    COUNTED = ("registered_total", "largest_registration", "copies", "rectangles", "copied_bytes", "staged_bytes")
    MOST = ("most_in_flight", "most_in_flight_bytes", "waits")

    def setUp(self):
        super().setUp()
        self.before = {name: get(name) for name in self.ORDERED}
        order(**{name: 0 for name in (*self.FAULTS, *self.COUNTED, *self.MOST)})
        constants = (_devices.REGISTERED_AT_ONCE_BYTES, _devices.IN_FLIGHT_BYTES, _cuda.Torch)
        self.addCleanup(self._settle, constants)
        self.torch_of_its_own, _cuda.Torch = _cuda.Torch, Torch
        Torch.lent.clear()
        Torch.allocated.clear()

    def _settle(self, constants):
        order(**self.before, **{name: 0 for name in self.FAULTS})
        _devices.REGISTERED_AT_ONCE_BYTES, _devices.IN_FLIGHT_BYTES, _cuda.Torch = constants
        self.tensors = None
        gc.collect()
        # The thread that lets go of things does so when everything before is done.
        until(lambda: get("in_flight") == 0 and get("registrations") == 0)
        until(lambda: get("host_blocks") == 0 and get("events") == 0)
        until(lambda: get("pushes") == get("pops"))
        Torch.kept.clear()
        self.assertLessEqual(get("streams"), get("devices"))
        self.assertEqual(violation(), "")

    def open(self, path, **options):
        return weightd.open(path, device="cuda", **options)
