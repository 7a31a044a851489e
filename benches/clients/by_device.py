"""Has every tensor of a model on a CUDA device: by_device.py SOURCE PUBLISHED HOW

HOW is `pinned` (one copy of all bytes out of memory that cudaMallocHost gave: the limit), `registered` (weightd, registering
included), `again` (weightd, once everything is registered), `staging` (weightd, through its buffers), or `safetensors`.
"""

import clients
import torch
import weightd
from safetensors.torch import load_file
from weightd import _devices

DEVICE = torch.device("cuda", 0)
#: The model, as it was opened last.
opened = None
#: What registering had taken by the time that the last load began.
registered_before = 0.0


def pinned():
    """Memory and target are made before; nothing but the copy is in the time."""
    published = dict(clients.published())
    host = torch.empty(sum(len(content) for _, content in published.values()), dtype=torch.uint8, pin_memory=True)
    places, at = {}, 0
    for name, (entry, content) in published.items():
        host[at : at + len(content)] = content
        places[name] = (entry, at, at + len(content))
        at += len(content)
    target = torch.empty_like(host, device=DEVICE)

    def load():
        target.copy_(host, non_blocking=True)
        torch.cuda.synchronize(DEVICE)
        for name, (entry, start, end) in places.items():
            yield name, target[start:end].view(clients.DTYPES[entry["dtype"]]).reshape(entry["shape"])

    return load


def of_weightd(expected):
    def load():
        global opened, registered_before
        if opened is None or clients.HOW != "again":
            opened = weightd.open(clients.SOURCE, device=DEVICE)
        registered_before = opened._registering_seconds
        assert opened.how == "shared memory", opened.why
        for name in opened.offset_keys():
            yield name, opened[name].torch()
        assert opened.transfer == expected, opened.transfer_why
        torch.cuda.synchronize(DEVICE)

    return load


def by_safetensors():
    for path in clients.files():
        yield from load_file(path, device=str(DEVICE)).items()
    torch.cuda.synchronize(DEVICE)


def seconds_of_registering():
    return {"registering": opened._registering_seconds - registered_before} if opened is not None else {}


# Starting CUDA takes longer than any copy.
torch.zeros(1, device=DEVICE)
if clients.HOW == "pinned":
    way = pinned()
elif clients.HOW == "safetensors":
    way = by_safetensors
elif clients.HOW == "staging":
    _devices.REGISTERED_AT_ONCE_BYTES = 0
    way = of_weightd("staging buffers")
else:
    way = of_weightd("registered memory")
if clients.HOW == "again":
    for _ in way():
        pass
clients.serve(way, more=seconds_of_registering)
