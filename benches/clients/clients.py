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

#: Which part of tensors it wants along their first dimension, of `rank/ranks`.
PART = tuple(int(number) for number in HOW.split("/")) if HOW and "/" in HOW else None

DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32}
_PAGE = 4096


def serve(load, is_kept=True, more=dict):
    """Does as it is told. `load` yields names and tensors, which are held, or read at once where they are not to be kept. What
    `more` says is said of a load, too.
    """
    tensors = {}
    _say(ready=True)
    for line in sys.stdin:
        command = line.strip()
        if command == "load":
            _say(**_load(load, tensors, is_kept), **more())
        elif command == "read":
            for tensor in tensors.values():
                touch(tensor)
            _say(read=len(tensors))
        elif command == "check":
            # What was not kept is compared as it comes, once more.
            _say(right=_check(tensors.items() if is_kept else load()))
        else:
            raise SystemExit(f"{command!r} is no command")


def files(directory=SOURCE):
    """The files of weights of a directory, in their order."""
    return sorted(glob.glob(os.path.join(directory, "*.safetensors")))


def touch(tensor):
    """Reads a byte of every page."""
    as_bytes(tensor)[::_PAGE].sum()


def is_cut(shape):
    """Whether only a part of a tensor of that shape is wanted, as a rank of a tensor-parallel server wants it."""
    return PART is not None and len(shape) > 1 and shape[0] % PART[1] == 0


def rows(shape):
    """The rows that are wanted of a tensor of that shape, which is cut."""
    rank, ranks = PART
    count = shape[0] // ranks
    return slice(rank * count, (rank + 1) * count)


def part(tensor):
    """The part of a tensor that is wanted."""
    return tensor[rows(tensor.shape)] if is_cut(tensor.shape) else tensor


def as_bytes(tensor):
    """A tensor's memory as bytes."""
    return tensor.reshape(-1).view(torch.uint8)


def _load(load, tensors, is_kept):
    begun, cpu, first = time.perf_counter(), time.process_time(), None
    for name, tensor in load():
        if is_kept:
            tensors[name] = tensor
        else:
            touch(tensor)
            tensors[name] = None
        if first is None:
            first = time.perf_counter() - begun
        # A loop holds what it has until it has the next, and a ring may have room for one alone.
        del tensor
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    return {"seconds": seconds, "cpu": cpu, "first": first, "tensors": len(tensors)}


def _check(tensors):
    """Compares tensors with the files that were published, byte by byte. Says how many those have."""
    right = dict(published())
    count = 0
    for name, tensor in tensors:
        entry, content = right[name]
        shape = entry["shape"]
        if is_cut(shape):
            content = content.reshape(shape[0], -1)[rows(shape)].reshape(-1)
            shape = [shape[0] // PART[1], *shape[1:]]
        assert list(tensor.shape) == shape and tensor.dtype == DTYPES[entry["dtype"]], name
        assert torch.equal(as_bytes(tensor).cpu(), content), f"{name} has wrong bytes"
        count += 1
        del tensor
    assert count == len(right), f"{count} tensors came, and there are {len(right)}"
    return count


def published():
    """Names of all tensors, each with its entry of the header and its bytes."""
    for path in files(PUBLISHED):
        with open(path, "rb") as file:
            # Never written to: this is what torch takes without a warning.
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        data = 8 + int.from_bytes(memory[:8], "little")
        header = json.loads(memory[8:data])
        header.pop("__metadata__", None)
        whole = torch.frombuffer(memory, dtype=torch.uint8)
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            yield name, (entry, whole[data + start : data + end])


def _say(**answer):
    print(json.dumps(answer), flush=True)
