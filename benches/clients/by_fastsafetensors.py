"""Reads every tensor of a directory with fastsafetensors into host memory, and keeps it: by_fastsafetensors.py DIRECTORY PUBLISHED

On a processor it has its copier `nogds`, threads that read into a bounce buffer and copy from there.
"""

import clients
from fastsafetensors import SafeTensorsFileLoader, SingleGroup

#: Its buffers must outlive the tensors that lie in them.
held = []


def load():
    loader = SafeTensorsFileLoader(SingleGroup(), "cpu", nogds=True, framework="pytorch")
    loader.add_filenames({0: clients.files()})
    buffers = loader.copy_files_to_device(max_copy_block_size=256 << 20)
    held.append((loader, buffers))
    for name in loader.get_keys():
        yield name, buffers.get_tensor(name)


clients.serve(load)
