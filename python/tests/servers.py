"""What model servers do with the tensors of a loader: a model that is split, and what of its files was touched."""

import os
import sys

import torch

#: Where the stand-ins of servers are. They are looked for before anything that is installed.
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "stand_ins"))


class Model:
    """Parameters of which rank `rank` of `ranks` has a part, as servers split them: by rows, or by columns."""

    def __init__(self, whole, columns=(), rank=0, ranks=1):
        self.columns, self.rank, self.ranks = columns, rank, ranks
        self.parameters = {}
        for name, shape in whole.items():
            shape = list(shape)
            shape[self.split(name)] //= ranks
            self.parameters[name] = torch.full(shape, -1, dtype=torch.float32)

    def split(self, name):
        return 1 if name in self.columns else 0

    def named_parameters(self):
        return self.parameters.items()

    def load_weights(self, weights):
        loaded = set()
        for name, tensor in weights:
            parameter = self.parameters[name]
            size = parameter.shape[self.split(name)]
            parameter.copy_(tensor.narrow(self.split(name), self.rank * size, size))
            loaded.add(name)
        return loaded

    def forget(self):
        """What sleep of level 2 leaves of parameters."""
        for parameter in self.parameters.values():
            parameter.fill_(-2)


def numbers(seed, shape):
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape) + seed


def save(path, shapes, seed=0):
    """A file of tensors that can be told from those of another seed."""
    from safetensors.torch import save_file

    save_file({name: numbers(seed + at, shape) for at, (name, shape) in enumerate(shapes.items())}, path)
    return path


def touched(path):
    """Bytes of a file that are in this process's page tables."""
    found, is_it = 0, False
    with open("/proc/self/smaps") as maps:
        for line in maps:
            first = line.split(None, 1)[0]
            if not first.endswith(":"):
                is_it = line.rstrip().endswith(os.path.realpath(path))
            elif is_it and first == "Rss:":
                found += int(line.split()[1]) << 10
    return found
