//! Reading an image without mounting it: what is in it, and whether it is what it should be.
//!
//! A disk is read front to back, whichever form it has. Its metadata come first; then it is known where every file lies, and the
//! files are taken as they come.

mod names;
mod scan;
mod source;

use std::path::{Path, PathBuf};

use tokio::sync::watch;
use weightd_types::{ByteRange, SnapshotKey, SourceUri};

use crate::{ImageError, Progress};
use names::Names;
use scan::{Depth, Scan};

/// What an image holds.
#[derive(Debug, Clone)]
pub struct Listing {
    /// Length of the disk in bytes.
    pub disk_bytes: u64,
    /// Name of the file system.
    pub label: String,
    /// The snapshots, by key.
    pub snapshots: Vec<ListedSnapshot>,
}

/// A snapshot in an image.
#[derive(Debug, Clone)]
pub struct ListedSnapshot {
    /// Its key.
    pub key: SnapshotKey,
    /// Where it comes from.
    pub source: SourceUri,
    /// Its files: names, and lengths of their objects in bytes.
    pub files: Vec<(String, u64)>,
}

/// What a verification found.
#[derive(Debug, Clone)]
pub struct Verified {
    /// What the image holds.
    pub listing: Listing,
    /// Bytes of blobs that were read and compared.
    pub checked_bytes: u64,
    /// Number of blobs.
    pub blobs: usize,
    /// What is wrong; empty for a sound image.
    pub faults: Vec<Fault>,
}

/// Something in an image that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Name in the image.
    pub path: PathBuf,
    /// Bytes of the file, if it is about some of them.
    pub range: Option<ByteRange>,
    /// What is wrong.
    pub why: String,
}

/// Lists what an image holds: a raw disk, a block device, or a `.tar.gz`. Blocks.
///
/// # Errors
/// [`ImageError::NotAnImage`], [`ImageError::Damaged`] and others, when it cannot be read.
pub fn list(path: &Path) -> Result<Listing, ImageError> {
    let mut scan = Scan::new(path, Depth::Names);
    source::read(path, &mut scan, None)?;
    let names = scan.finish()?;
    Ok(names.listing())
}

/// Reads an image whole, and compares everything with what was recorded when it was built. Blocks.
///
/// # Errors
/// As [`list`]; what is wrong with the files of an image is no error, but in the answer.
pub fn verify(path: &Path, progress: &watch::Sender<Progress>) -> Result<Verified, ImageError> {
    let mut scan = Scan::new(path, Depth::Everything);
    source::read(path, &mut scan, Some(progress))?;
    let names: Names = scan.finish()?;
    Ok(names.verified())
}
