"""Makes a model of transformers from a directory: by_transformers.py DIRECTORY PUBLISHED"""

import clients
from transformers import AutoModelForCausalLM


def load():
    model = AutoModelForCausalLM.from_pretrained(clients.SOURCE, dtype="auto")
    for name, parameter in model.named_parameters():
        yield name, parameter.detach()


clients.serve(load)
