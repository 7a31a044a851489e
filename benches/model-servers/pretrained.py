"""Greedy tokens of transformers, and where its parameters lie: pretrained.py DIRECTORY PROMPTS LENGTH"""

import json
import os
import sys

import torch
from transformers import AutoModelForCausalLM

DIRECTORY, PROMPTS, LENGTH = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])


def mapped(path):
    """Where files are in this process's memory whose path begins like this."""
    with open("/proc/self/maps") as maps:
        lines = [line.split(maxsplit=5) for line in maps]
    ranges = [line[0].split("-") for line in lines if len(line) == 6 and line[5].startswith(path)]
    return [(int(start, 16), int(end, 16)) for start, end in ranges]


model = AutoModelForCausalLM.from_pretrained(DIRECTORY, dtype="auto")
parameters = list(model.parameters())


def lying_in(path):
    """How many parameters lie in such files."""
    there = mapped(path)
    ends = [(parameter.data_ptr(), parameter.data_ptr() + parameter.nbytes) for parameter in parameters]
    return sum(any(start <= first and last <= end for start, end in there) for first, last in ends)


in_files, in_arenas = lying_in(os.path.realpath(DIRECTORY)), lying_in("/memfd:weightd-arena")
tokens = []
for prompt in PROMPTS:
    options = {"max_new_tokens": LENGTH, "min_new_tokens": LENGTH, "do_sample": False, "pad_token_id": 0}
    tokens.append(model.generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist())
print(json.dumps({"tokens": tokens, "parameters": len(parameters), "in_files": in_files, "in_arenas": in_arenas}))
