"""Makes a model, or opens one as loaders do and compares it: loader.py np|pt make|read DIRECTORY

Every tensor is made from its own seed, so that whoever reads knows what must be there. Once everything is imported it
says "ready" and waits for a line: what is to be read while it loads must not wait for Python.
"""

import json
import mmap
import os
import sys
import warnings

import numpy
from safetensors import safe_open

SHARDS, TENSORS = 3, 12
FRAMEWORK, TASK, DIRECTORY = sys.argv[1:]

if FRAMEWORK == "np":
    from safetensors.numpy import load, load_file, save_file

    KINDS = [numpy.float16, numpy.float32, numpy.float32]
    same = numpy.array_equal
else:
    import torch
    from safetensors.torch import load, load_file, save_file

    KINDS = [torch.bfloat16, torch.float32, torch.float16]

    def same(found, expected) -> bool:
        return found.dtype == expected.dtype and torch.equal(found, expected)


def tensor(shard: int, number: int):
    """One or two megabytes, in lengths that leave nothing aligned by itself."""
    random = numpy.random.default_rng(1000 * shard + number)
    values = random.standard_normal((511, 1000 + number), dtype=numpy.float32)
    kind = KINDS[number % 3]
    return values.astype(kind) if FRAMEWORK == "np" else torch.from_numpy(values).to(kind)


def tensors(shard: int) -> dict:
    return {f"layer.{number}": tensor(shard, number) for number in range(TENSORS)}


def path(shard: int) -> str:
    return os.path.join(DIRECTORY, f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors")


def make() -> None:
    os.makedirs(DIRECTORY)
    for shard in range(SHARDS):
        save_file(tensors(shard), path(shard), metadata={"format": FRAMEWORK})


def read() -> None:
    # The last first: that is what is here last.
    for shard in reversed(range(SHARDS)):
        expected = tensors(shard)
        with safe_open(path(shard), framework=FRAMEWORK) as file:
            assert file.metadata() == {"format": FRAMEWORK}, file.metadata()
            assert sorted(file.keys()) == sorted(expected)
            for name, right in reversed(expected.items()):
                assert same(file.get_tensor(name), right), (shard, name)
                part = file.get_slice(name)
                assert part.get_shape() == list(right.shape), part.get_shape()
                assert same(part[100:200, 7:9], right[100:200, 7:9]), (shard, name)
        with open(path(shard), "rb") as file:
            bytes_read = file.read()
        found = [load_file(path(shard)), load(bytes_read)] + ([from_mapping(shard)] if FRAMEWORK == "pt" else [])
        for way, loaded in enumerate(found):
            assert sorted(loaded) == sorted(expected), way
            for name, right in expected.items():
                assert same(loaded[name], right), (way, shard, name)
    print(f"{SHARDS * TENSORS} tensors are right")


def from_mapping(shard: int) -> dict:
    """Tensors that lie in a mapping of the file, as loaders of their own make have them."""
    with open(path(shard), "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    length = int.from_bytes(mapped[:8], "little")
    kinds = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
    found = {}
    for name, entry in json.loads(mapped[8 : 8 + length]).items():
        if name != "__metadata__":
            count = numpy.prod(entry["shape"]).item()
            offset = 8 + length + entry["data_offsets"][0]
            with warnings.catch_warnings():
                # Nobody will write to it.
                warnings.simplefilter("ignore")
                flat = torch.frombuffer(mapped, dtype=kinds[entry["dtype"]], count=count, offset=offset)
            found[name] = flat.reshape(entry["shape"])
    return found


print("ready", flush=True)
sys.stdin.readline()
{"make": make, "read": read}[TASK]()
