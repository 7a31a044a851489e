//! Names of files in a store.

use std::path::{Path, PathBuf};

use weightd_types::{BlobKey, SnapshotKey};

/// Version of the store format that this code writes, and the newest it reads.
pub const FORMAT_VERSION: u32 = 1;

/// First word of the file `format`.
pub(crate) const FORMAT_WORD: &str = "weightd-store";

/// What the file `format` of a store says, a line.
pub fn format_line() -> String {
    format!("{FORMAT_WORD} {FORMAT_VERSION}\n")
}

/// A store's directory, and where everything in it lies.
#[derive(Debug, Clone)]
pub struct Paths {
    root: PathBuf,
}

impl Paths {
    /// Of the store in a directory.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// One line, `weightd-store <version>`: what makes a directory a store.
    pub fn format(&self) -> PathBuf {
        self.root.join("format")
    }

    /// Locked by the agent that has the store open; holds its process id for people.
    pub(crate) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(crate) fn index(&self) -> PathBuf {
        self.root.join("index.redb")
    }

    /// Directories with blobs in them.
    pub fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    /// Directories of snapshots, and their manifests.
    pub fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    /// Snapshot directories under construction.
    pub(crate) fn temporary(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// The 256 directories of `blobs/` keep each one short enough for any file system.
    pub fn blob_directory(&self, key: &BlobKey) -> PathBuf {
        let name = key.id.to_string();
        self.blobs().join(&name[..2])
    }

    /// A blob's bytes.
    pub fn blob(&self, key: &BlobKey) -> PathBuf {
        self.blob_directory(key).join(key.to_string())
    }

    /// Its presence says that the blob is complete.
    pub fn blob_manifest(&self, key: &BlobKey) -> PathBuf {
        self.blob_directory(key).join(format!("{key}.json"))
    }

    /// The object's own safetensors header, which the aligned layout replaces.
    pub fn blob_header(&self, key: &BlobKey) -> PathBuf {
        self.blob_directory(key).join(format!("{key}.header"))
    }

    /// A complete snapshot's files.
    pub fn snapshot(&self, key: &SnapshotKey) -> PathBuf {
        self.snapshots().join(key.to_string())
    }

    /// Its presence says that the snapshot is complete.
    pub fn snapshot_manifest(&self, key: &SnapshotKey) -> PathBuf {
        self.snapshots().join(format!("{key}.json"))
    }

    /// The manifest a snapshot will have, kept while it loads.
    pub(crate) fn loading_manifest(&self, key: &SnapshotKey) -> PathBuf {
        self.snapshots().join(format!("{key}.loading.json"))
    }
}
