"""Makes a model, or opens one as a loader does and compares it: loader.py make|read DIRECTORY

Every tensor is made from its own seed, so that whoever reads knows what must be there.
"""

import os
import sys

import numpy
from safetensors import safe_open
from safetensors.numpy import save_file

SHARDS, TENSORS = 3, 12


def tensor(shard: int, number: int) -> numpy.ndarray:
    """About 2 MB of float32 or 1 MB of float16, in lengths that leave nothing aligned by itself."""
    random = numpy.random.default_rng(1000 * shard + number)
    kind = numpy.float32 if number % 3 else numpy.float16
    return random.standard_normal((511, 1000 + number)).astype(kind)


def name(shard: int) -> str:
    return f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"


def make(directory: str) -> None:
    os.makedirs(directory)
    for shard in range(SHARDS):
        tensors = {f"layer.{number}": tensor(shard, number) for number in range(TENSORS)}
        save_file(tensors, os.path.join(directory, name(shard)), metadata={"format": "np"})


def read(directory: str) -> None:
    for shard in range(SHARDS):
        with safe_open(os.path.join(directory, name(shard)), framework="np") as file:
            assert file.metadata() == {"format": "np"}, file.metadata()
            assert sorted(file.keys()) == sorted(f"layer.{number}" for number in range(TENSORS))
            for number in reversed(range(TENSORS)):
                expected = tensor(shard, number)
                assert numpy.array_equal(file.get_tensor(f"layer.{number}"), expected), (shard, number)
                part = file.get_slice(f"layer.{number}")
                assert part.get_shape() == list(expected.shape), part.get_shape()
                assert numpy.array_equal(part[100:200, 7:9], expected[100:200, 7:9]), (shard, number)
    print(f"{SHARDS * TENSORS} tensors are right")


{"make": make, "read": read}[sys.argv[1]](sys.argv[2])
