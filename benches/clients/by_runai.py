"""Reads every tensor of a model with runai-model-streamer, and keeps it: by_runai.py SOURCE PUBLISHED [RANK/RANKS]

With RANK/RANKS it keeps a copy of its part of each: there is no way to read less.
"""

import clients
from runai_model_streamer import SafetensorsStreamer, list_safetensors


def load():
    with SafetensorsStreamer() as streamer:
        streamer.stream_files(sorted(list_safetensors(clients.SOURCE)))
        # Tensors are the caller's to keep, which is its default.
        for name, tensor in streamer.get_tensors():
            yield name, clients.part(tensor).clone() if clients.PART else tensor


clients.serve(load)
