"""Greedy tokens of transformers, and where its parameters lie: pretrained.py DIRECTORY PROMPTS LENGTH"""

import json
import os
import sys

import torch
from transformers import AutoModelForCausalLM

DIRECTORY, PROMPTS, LENGTH = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])


def mapped():
    """Where files of the directory are in this process's memory."""
    with open("/proc/self/maps") as maps:
        lines = [line.split(maxsplit=5) for line in maps]
    ranges = [line[0].split("-") for line in lines if len(line) == 6 and line[5].startswith(os.path.realpath(DIRECTORY))]
    return [(int(start, 16), int(end, 16)) for start, end in ranges]


model = AutoModelForCausalLM.from_pretrained(DIRECTORY, dtype="auto")
there = mapped()
parameters = list(model.parameters())
in_files = sum(
    any(start <= parameter.data_ptr() and parameter.data_ptr() + parameter.nbytes <= end for start, end in there)
    for parameter in parameters
)
tokens = []
for prompt in PROMPTS:
    options = {"max_new_tokens": LENGTH, "min_new_tokens": LENGTH, "do_sample": False, "pad_token_id": 0}
    tokens.append(model.generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist())
print(json.dumps({"tokens": tokens, "parameters": len(parameters), "in_files": in_files}))
