//! Writing safetensors files.

use std::{fs::File, io::Write, path::Path, sync::Mutex, thread};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::{Pattern, Tensor};

/// Bytes written at once: large enough to be fast, small enough to stay in the processor's cache.
const BLOCK_BYTES: usize = 256 << 10;

/// Writes one safetensors file with the tensors in the order given, without gaps; the bytes of each are those of
/// [`Pattern::of_tensor`].
///
/// # Errors
/// When the file cannot be written.
pub fn write_safetensors(path: &Path, tensors: &[Tensor], seed: u64) -> Result<()> {
    let write = || -> Result<()> {
        let mut file = File::create(path)?;
        file.write_all(&header(tensors))?;
        let mut block = vec![0; BLOCK_BYTES];
        for tensor in tensors {
            let pattern = Pattern::of_tensor(seed, &tensor.name);
            let mut offset = 0;
            while offset < tensor.bytes() {
                let length = usize::try_from(tensor.bytes() - offset).unwrap_or(BLOCK_BYTES).min(BLOCK_BYTES);
                pattern.fill(offset, &mut block[..length]);
                file.write_all(&block[..length])?;
                offset += length as u64;
            }
        }
        Ok(())
    };
    write().with_context(|| format!("writing {}", path.display()))
}

/// Length and JSON, padded with spaces to eight bytes as the library does.
fn header(tensors: &[Tensor]) -> Vec<u8> {
    let mut entries = Map::new();
    entries.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + tensor.bytes();
        let entry: Value =
            json!({ "dtype": tensor.dtype.name(), "shape": tensor.shape, "data_offsets": [offset, end] });
        entries.insert(tensor.name.clone(), entry);
        offset = end;
    }
    let mut text = Value::Object(entries).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.append(&mut text);
    header
}

/// Writes every file, as many at once as there are cores.
pub(super) fn write_all(directory: &Path, files: &[String], shards: &[Vec<Tensor>], seed: u64) -> Result<()> {
    let work = Mutex::new(files.iter().zip(shards));
    let next = || work.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
    let worker = || -> Result<()> {
        while let Some((file, tensors)) = next() {
            write_safetensors(&directory.join(file), tensors, seed)?;
        }
        Ok(())
    };
    let cores = thread::available_parallelism().map_or(1, usize::from).min(files.len());
    thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(worker)).collect();
        workers
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}
