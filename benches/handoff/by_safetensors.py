"""Loads every tensor of a directory with safetensors: by_safetensors.py DIRECTORY PUBLISHED [copied]

What it gives lies in a mapping of the file, where nothing is read yet: so each page is touched, or with `copied` each tensor
is copied to memory that is the process's own.
"""

import glob
import os

import clients
from safetensors.torch import load_file


def load():
    for path in sorted(glob.glob(os.path.join(clients.SOURCE, "*.safetensors"))):
        for name, tensor in load_file(path).items():
            if clients.HOW == "copied":
                tensor = tensor.clone()
            else:
                clients.touch(tensor)
            yield name, tensor


clients.serve(load)
