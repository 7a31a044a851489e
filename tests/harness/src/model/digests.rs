//! Comparing models by their tensors, whatever layout the files have.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
    os::unix::fs::FileExt,
    path::Path,
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};
use safetensors::tensor::Metadata;
use sha2::{Digest, Sha256};

/// The largest header the library reads.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// What makes two tensors the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorDigest {
    /// As the header writes it.
    pub dtype: String,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Of its bytes, in hexadecimal.
    pub sha256: String,
}

/// The digest of every tensor in the safetensors files of a directory, by `file:tensor`. The header is read by the
/// reference library and not by ours.
///
/// # Errors
/// When a file cannot be read, or the library refuses its header.
pub fn tensor_digests(directory: &Path) -> Result<BTreeMap<String, TensorDigest>> {
    let entries = fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    // Gigabytes take seconds on one core.
    let digests = thread::scope(|scope| {
        let files: Vec<_> = paths.iter().map(|path| scope.spawn(move || file_digests(path))).collect();
        files.into_iter().map(thread::ScopedJoinHandle::join).collect::<Vec<_>>()
    });
    let mut all = BTreeMap::new();
    for (path, digests) in paths.iter().zip(digests) {
        let digests = digests.map_err(|_| anyhow!("a thread panicked")).flatten();
        let digests = digests.with_context(|| format!("reading {}", path.display()))?;
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        all.extend(digests.into_iter().map(|(tensor, digest)| (format!("{file}:{tensor}"), digest)));
    }
    Ok(all)
}

/// Fails the test unless both directories hold the same tensors in files of the same names.
///
/// # Panics
/// When they differ, with the names of those that do; or cannot be read.
#[expect(clippy::panic, reason = "this is an assertion")]
pub fn assert_same_tensors(original: &Path, stored: &Path) {
    let [expected, found] = [original, stored].map(|directory| match tensor_digests(directory) {
        Ok(digests) => digests,
        Err(error) => panic!("{error:#}"),
    });
    assert!(!expected.is_empty(), "no safetensors files in {}", original.display());
    let differ: Vec<&String> = expected
        .iter()
        .filter(|(name, digest)| found.get(*name) != Some(digest))
        .map(|(name, _)| name)
        .collect();
    let extra: Vec<&String> = found.keys().filter(|name| !expected.contains_key(*name)).collect();
    assert!(
        differ.is_empty() && extra.is_empty(),
        "tensors differ or are missing: {differ:?}; not in the original: {extra:?}"
    );
}

fn file_digests(path: &Path) -> Result<BTreeMap<String, TensorDigest>> {
    let mut file = File::open(path)?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    ensure!(length <= MAX_HEADER_BYTES, "a header of {length} bytes");
    let mut header = vec![0; usize::try_from(length)?];
    file.read_exact(&mut header)?;
    let metadata: Metadata = serde_json::from_slice(&header)?;
    ensure!(
        file.metadata()?.len() == 8 + length + metadata.data_len() as u64,
        "data is missing or left over"
    );

    let mut digests = BTreeMap::new();
    for (name, info) in metadata.tensors() {
        let (start, end) = info.data_offsets;
        let sha256 = digest(&file, 8 + length + start as u64, (end - start) as u64)?;
        digests
            .insert(name, TensorDigest { dtype: info.dtype.to_string(), shape: info.shape.clone(), sha256 });
    }
    Ok(digests)
}

fn digest(file: &File, mut offset: u64, mut left: u64) -> Result<String> {
    let mut sha256 = Sha256::new();
    let mut block = vec![0; 1 << 20];
    while left > 0 {
        let length = usize::try_from(left)?.min(block.len());
        file.read_exact_at(&mut block[..length], offset)?;
        sha256.update(&block[..length]);
        offset += length as u64;
        left -= length as u64;
    }
    Ok(hex::encode(sha256.finalize()))
}
