"""Opens every shard of a model as loaders do, and copies every tensor: clone_tensors.py DIRECTORY"""

import glob
import os
import sys

import ml_dtypes  # noqa: F401  Gives numpy the bfloat16 that safetensors asks it for.
from safetensors import safe_open

tensors = 0
for path in sorted(glob.glob(os.path.join(sys.argv[1], "*.safetensors"))):
    with safe_open(path, framework="np") as file:
        for name in file.keys():
            tensors += file.get_tensor(name).size > 0
assert tensors, f"no tensors below {sys.argv[1]}"
