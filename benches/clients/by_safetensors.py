"""Loads every tensor of a directory with safetensors: by_safetensors.py DIRECTORY PUBLISHED [copied | RANK/RANKS]

What it gives lies in a mapping of the file, where nothing is read yet: so each page is touched, or with `copied` each tensor
is copied to memory that is the process's own. With RANK/RANKS it takes its part of each, by `get_slice`.
"""

import clients
from safetensors import safe_open
from safetensors.torch import load_file


def load():
    for path in clients.files():
        yield from parts(path) if clients.PART else wholes(path)


def wholes(path):
    for name, tensor in load_file(path).items():
        if clients.HOW == "copied":
            tensor = tensor.clone()
        else:
            clients.touch(tensor)
        yield name, tensor


def parts(path):
    with safe_open(path, framework="pt") as file:
        for name in file.keys():
            tensor = file.get_slice(name)
            shape = tensor.get_shape()
            tensor = tensor[clients.rows(shape)] if clients.is_cut(shape) else file.get_tensor(name)
            clients.touch(tensor)
            yield name, tensor


clients.serve(load)
