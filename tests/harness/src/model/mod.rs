//! Deterministic, Llama-shaped, sharded models.
//!
//! The bytes of a tensor depend on the model's seed and the tensor's name alone, so a test can say what any range of
//! any tensor must hold without keeping the model.

mod digests;
mod pattern;
mod shape;
mod write;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

pub use digests::{TensorDigest, assert_same_tensors, tensor_digests};
pub use pattern::Pattern;
pub use shape::ModelShape;
pub use write::write_safetensors;

/// How a tensor's elements are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// Four bytes.
    F32,
    /// Two bytes.
    Bf16,
    /// One byte.
    F8E4m3,
}

impl Dtype {
    /// As the header writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::Bf16 => "BF16",
            Self::F8E4m3 => "F8_E4M3",
        }
    }

    /// Bytes of one element.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
            Self::F8E4m3 => 1,
        }
    }
}

/// A tensor to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Its name in the header.
    pub name: String,
    /// Its elements.
    pub dtype: Dtype,
    /// Its dimensions; none for a scalar.
    pub shape: Vec<u64>,
}

impl Tensor {
    /// A tensor.
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: impl Into<Vec<u64>>) -> Self {
        Self { name: name.into(), dtype, shape: shape.into() }
    }

    /// Its length in a file.
    pub fn bytes(&self) -> u64 {
        self.shape.iter().product::<u64>() * self.dtype.bytes()
    }
}

/// A model on disk.
#[derive(Debug, Clone)]
pub struct Model {
    /// Where its files lie.
    pub directory: PathBuf,
    /// Names of its files, weights first.
    pub files: Vec<String>,
    /// Its tensors, per safetensors file.
    pub shards: Vec<Vec<Tensor>>,
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
}

impl Model {
    /// Writes a model into `directory`, which is made when missing.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(directory: &Path, shape: &ModelShape) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        let shards = shape.shards();
        let mut files: Vec<String> =
            (0..shards.len()).map(|shard| shape.file_name(shard, shards.len())).collect();
        write::write_all(directory, &files, &shards, shape.seed)?;
        let tensor_bytes = shards.iter().flatten().map(Tensor::bytes).sum();
        if shards.len() > 1 {
            let weight_map: serde_json::Map<String, Value> = shards
                .iter()
                .zip(&files)
                .flat_map(|(shard, file)| shard.iter().map(move |tensor| (tensor.name.clone(), json!(file))))
                .collect();
            let index = json!({ "metadata": { "total_size": tensor_bytes }, "weight_map": weight_map });
            write_json(directory, "model.safetensors.index.json", &index, &mut files)?;
        }
        write_json(directory, "config.json", &shape.config(), &mut files)?;
        let tokenizer =
            json!({ "version": "1.0", "model": { "type": "BPE", "vocab": { "a": 0 }, "merges": [] } });
        write_json(directory, "tokenizer.json", &tokenizer, &mut files)?;
        Ok(Self { directory: directory.to_path_buf(), files, shards, tensor_bytes })
    }

    /// Bytes of all files.
    ///
    /// # Errors
    /// When a file has gone.
    pub fn file_bytes(&self) -> Result<u64> {
        let lengths = self.files.iter().map(|name| Ok(fs::metadata(self.directory.join(name))?.len()));
        lengths.sum()
    }
}

fn write_json(directory: &Path, name: &str, value: &Value, files: &mut Vec<String>) -> Result<()> {
    let path = directory.join(name);
    fs::write(&path, value.to_string()).with_context(|| format!("writing {}", path.display()))?;
    files.push(name.to_owned());
    Ok(())
}

#[cfg(test)]
mod tests;
