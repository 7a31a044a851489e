"""Makes a small Llama with a tokenizer, as it would be published: model.py DIRECTORY SEED

Its weights are random and wide enough apart that greedy tokens differ from step to step and from seed to seed.
"""

import sys

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

DIRECTORY, SEED = sys.argv[1], int(sys.argv[2])
VOCABULARY = 4096

torch.manual_seed(SEED)
config = LlamaConfig(
    hidden_size=1024,
    intermediate_size=2816,
    num_hidden_layers=9,
    num_attention_heads=16,
    num_key_value_heads=4,
    vocab_size=VOCABULARY,
    max_position_embeddings=2048,
    initializer_range=0.05,
    dtype="bfloat16",
)
model = LlamaForCausalLM(config).to(torch.bfloat16)
model.generation_config.eos_token_id = None
model.save_pretrained(DIRECTORY, max_shard_size="80MB")
words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{number}": number for number in range(3, VOCABULARY)}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
).save_pretrained(DIRECTORY)
