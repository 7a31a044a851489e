//! What a model consists of.

use serde_json::{Value, json};

use super::{Dtype, Tensor};

/// The size and kind of a model. The default is the 3.71 GB model every published figure was measured on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelShape {
    /// Transformer layers.
    pub layers: u64,
    /// Safetensors files. One makes a model without an index, as on the Hugging Face hub.
    pub shards: u64,
    /// Width; a multiple of 16.
    pub hidden: u64,
    /// Rows of the embedding.
    pub vocab: u64,
    /// Another seed gives other bytes in the same files.
    pub seed: u64,
    /// Weights of one byte with scales of odd sizes before them, as fp8 checkpoints have: nothing is aligned.
    pub fp8: bool,
}

impl Default for ModelShape {
    fn default() -> Self {
        Self { layers: 9, shards: 4, hidden: 4096, vocab: 32_000, seed: 7, fp8: false }
    }
}

impl ModelShape {
    /// A few megabytes in two files; each is less than one chunk.
    pub fn tiny() -> Self {
        Self { layers: 2, shards: 2, hidden: 256, vocab: 1_000, ..Self::default() }
    }

    /// About 60 MB in three files of a few chunks each.
    pub fn small() -> Self {
        Self { layers: 4, shards: 3, hidden: 768, vocab: 6_000, ..Self::default() }
    }

    /// About 200 MB in four files.
    pub fn demo() -> Self {
        Self { layers: 7, shards: 4, hidden: 1024, vocab: 12_000, ..Self::default() }
    }

    /// A model of the default width with about this many bytes of tensors, for measuring at several sizes.
    pub fn of_bytes(bytes: u64) -> Self {
        let shape = Self::default();
        let total =
            |layers| Self { layers, ..shape }.shards().iter().flatten().map(Tensor::bytes).sum::<u64>();
        let (none, one) = (total(0), total(1));
        let layer = one - none;
        Self { layers: (bytes.saturating_sub(none) + layer / 2) / layer, ..shape }
    }

    /// The tensors of each file.
    pub fn shards(&self) -> Vec<Vec<Tensor>> {
        let tensors = self.tensors();
        let total: u64 = tensors.iter().map(Tensor::bytes).sum();
        let mut shards = vec![Vec::new()];
        let mut filled = 0;
        for tensor in tensors {
            if filled >= total / self.shards && (shards.len() as u64) < self.shards {
                shards.push(Vec::new());
                filled = 0;
            }
            filled += tensor.bytes();
            if let Some(shard) = shards.last_mut() {
                shard.push(tensor);
            }
        }
        if self.fp8 {
            // As the safetensors library sorts when it saves: wide elements first.
            shards
                .iter_mut()
                .for_each(|shard| shard.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.bytes())));
        }
        shards
    }

    /// The name of file number `shard` of `of`.
    pub(super) fn file_name(&self, shard: usize, of: usize) -> String {
        if of == 1 {
            return "model.safetensors".to_owned();
        }
        format!("model-{:05}-of-{of:05}.safetensors", shard + 1)
    }

    /// What `config.json` holds.
    pub(super) fn config(&self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
            "hidden_size": self.hidden, "intermediate_size": self.intermediate(),
            "num_hidden_layers": self.layers, "num_attention_heads": 32, "num_key_value_heads": 8,
            "vocab_size": self.vocab,
        })
    }

    fn intermediate(&self) -> u64 {
        self.hidden * 43 / 16
    }

    fn tensors(&self) -> Vec<Tensor> {
        let (hidden, bf16) = (self.hidden, Dtype::Bf16);
        let mut tensors = vec![Tensor::new("model.embed_tokens.weight", bf16, [self.vocab, hidden])];
        for layer in 0..self.layers {
            for (name, shape) in self.projections() {
                self.projection(&format!("model.layers.{layer}.{name}"), shape, &mut tensors);
            }
            for name in ["input_layernorm", "post_attention_layernorm"] {
                tensors.push(Tensor::new(format!("model.layers.{layer}.{name}.weight"), bf16, [hidden]));
            }
        }
        tensors.push(Tensor::new("model.norm.weight", bf16, [hidden]));
        tensors.push(Tensor::new("lm_head.weight", bf16, [self.vocab, hidden]));
        tensors
    }

    fn projections(&self) -> [(&'static str, [u64; 2]); 7] {
        let (hidden, inter) = (self.hidden, self.intermediate());
        [
            ("self_attn.q_proj", [hidden, hidden]),
            ("self_attn.k_proj", [hidden / 4, hidden]),
            ("self_attn.v_proj", [hidden / 4, hidden]),
            ("self_attn.o_proj", [hidden, hidden]),
            ("mlp.gate_proj", [inter, hidden]),
            ("mlp.up_proj", [inter, hidden]),
            ("mlp.down_proj", [hidden, inter]),
        ]
    }

    fn projection(&self, name: &str, shape: [u64; 2], tensors: &mut Vec<Tensor>) {
        if !self.fp8 {
            tensors.push(Tensor::new(format!("{name}.weight"), Dtype::Bf16, shape));
            return;
        }
        let blocks = shape.map(|side| side.div_ceil(128));
        tensors.push(Tensor::new(format!("{name}.input_scale"), Dtype::F32, []));
        tensors.push(Tensor::new(format!("{name}.weight_scale_inv"), Dtype::F32, blocks));
        tensors.push(Tensor::new(format!("{name}.weight"), Dtype::F8E4m3, shape));
    }
}
