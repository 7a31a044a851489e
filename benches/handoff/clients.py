"""What the programs that stand for model servers have in common: they begin when they are told to, and hold what they got.

Each is started with a source and the directory of the model as it was published. It says that it is ready once everything is
imported, and answers every line on stdin by one on stdout: `load`, then `read` or `check`. It ends with its stdin.
"""

import glob
import json
import mmap
import os
import sys
import time

import torch

SOURCE, PUBLISHED = sys.argv[1], sys.argv[2]
#: What it was told beside that.
HOW = sys.argv[3] if len(sys.argv) > 3 else None

_DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32}
_PAGE = 4096


def serve(load):
    """Does as it is told. `load` yields names and tensors, which are held."""
    tensors = {}
    _say(ready=True)
    for line in sys.stdin:
        command = line.strip()
        if command == "load":
            _say(**_load(load, tensors))
        elif command == "read":
            for tensor in tensors.values():
                touch(tensor)
            _say(read=len(tensors))
        elif command == "check":
            _say(right=_check(tensors))
        else:
            raise SystemExit(f"{command!r} is no command")


def touch(tensor):
    """Reads a byte of every page."""
    as_bytes(tensor)[::_PAGE].sum()


def as_bytes(tensor):
    """A tensor's memory as bytes."""
    return tensor.reshape(-1).view(torch.uint8)


def _load(load, tensors):
    begun, cpu, first = time.perf_counter(), time.process_time(), None
    for name, tensor in load():
        tensors[name] = tensor
        if first is None:
            first = time.perf_counter() - begun
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    return {"seconds": seconds, "cpu": cpu, "first": first, "tensors": len(tensors)}


def _check(tensors):
    """Compares all that is held with the files that were published, byte by byte. Says how many tensors they have."""
    count = 0
    for path in glob.glob(os.path.join(PUBLISHED, "*.safetensors")):
        with open(path, "rb") as file:
            # Never written to: this is what torch takes without a warning.
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        data = 8 + int.from_bytes(memory[:8], "little")
        header = json.loads(memory[8:data])
        header.pop("__metadata__", None)
        whole = torch.frombuffer(memory, dtype=torch.uint8)
        for name, entry in header.items():
            tensor, (start, end) = tensors[name], entry["data_offsets"]
            assert list(tensor.shape) == entry["shape"] and tensor.dtype == _DTYPES[entry["dtype"]], name
            assert torch.equal(as_bytes(tensor), whole[data + start : data + end]), f"{name} has wrong bytes"
        count += len(header)
    assert count == len(tensors), f"{len(tensors)} tensors came, and there are {count}"
    return count


def _say(**answer):
    print(json.dumps(answer), flush=True)
