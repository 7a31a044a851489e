"""Makes a Llama with a tokenizer, as it would be published: model.py DIRECTORY SEED [--layers N ...]

Its weights are random and wide enough apart that greedy tokens differ from step to step and from seed to seed.
"""

import argparse
import math

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 4096
# Of random numbers. Every tensor takes them from another place on: to draw a billion takes a minute.
DRAWN = 8 << 20

parser = argparse.ArgumentParser()
parser.add_argument("directory")
parser.add_argument("seed", type=int)
parser.add_argument("--layers", type=int, default=9)
parser.add_argument("--hidden", type=int, default=1024)
parser.add_argument("--intermediate", type=int, default=2816)
parser.add_argument("--shard", default="80MB", help="most bytes of a file")
wanted = parser.parse_args()

torch.manual_seed(wanted.seed)
config = LlamaConfig(
    hidden_size=wanted.hidden,
    intermediate_size=wanted.intermediate,
    num_hidden_layers=wanted.layers,
    num_attention_heads=wanted.hidden // 64,
    num_key_value_heads=4,
    vocab_size=VOCABULARY,
    max_position_embeddings=2048,
    dtype="bfloat16",
)
drawn = torch.randn(DRAWN, dtype=torch.float32).mul_(0.05 * math.sqrt(1024 / wanted.hidden)).to(torch.bfloat16)


def values(like):
    """The values of a parameter."""
    if like.dim() == 1:
        return torch.ones(like.shape, dtype=torch.bfloat16)
    found = torch.empty(like.numel(), dtype=torch.bfloat16)
    start, done = int(torch.randint(DRAWN, ())), 0
    while done < len(found):
        part = drawn[start : start + len(found) - done]
        found[done : done + len(part)] = part
        start, done = 0, done + len(part)
    return found.view(like.shape)


with torch.device("meta"):
    model = LlamaForCausalLM(config).to(torch.bfloat16)
model.load_state_dict({name: values(like) for name, like in model.state_dict().items()}, assign=True)
model.generation_config.eos_token_id = None
model.save_pretrained(wanted.directory, max_shard_size=wanted.shard)
words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{number}": number for number in range(3, VOCABULARY)}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
).save_pretrained(wanted.directory)
