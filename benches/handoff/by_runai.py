"""Reads every tensor of a model with runai-model-streamer, and keeps it: by_runai.py SOURCE PUBLISHED"""

import clients
from runai_model_streamer import SafetensorsStreamer, list_safetensors


def load():
    with SafetensorsStreamer() as streamer:
        streamer.stream_files(sorted(list_safetensors(clients.SOURCE)))
        # Tensors are the caller's to keep, which is its default.
        yield from streamer.get_tensors()


clients.serve(load)
