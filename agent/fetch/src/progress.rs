//! How far a blob has come, for everyone who waits for it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use weightd_types::ObjectPath;

/// How far a blob has come.
#[derive(Debug)]
pub struct BlobProgress {
    total: u64,
    present: AtomicU64,
    fetched: AtomicU64,
    verified: AtomicBool,
}

/// How far a file of a snapshot has come, at one moment. Bytes are the object's. The name is the manifest's own: a
/// hundred thousand of them are not copied for each report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileProgress<'m> {
    /// The file.
    pub path: &'m ObjectPath,
    /// Bytes that are written.
    pub present: u64,
    /// Its length.
    pub total: u64,
    /// Whether it is complete: confirmed and durable.
    pub verified: bool,
}

impl BlobProgress {
    pub(crate) fn new(total: u64) -> Self {
        Self {
            total,
            present: AtomicU64::new(0),
            fetched: AtomicU64::new(0),
            verified: AtomicBool::new(false),
        }
    }

    /// Bytes of the object that are written.
    pub fn present(&self) -> u64 {
        self.present.load(Ordering::Relaxed).min(self.total)
    }

    /// Bytes that came from the origin, repeated ones counted again.
    pub fn fetched(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }

    /// Whether it is complete: confirmed and durable.
    pub fn is_verified(&self) -> bool {
        self.verified.load(Ordering::Acquire)
    }

    pub(crate) fn set_present(&self, bytes: u64) {
        self.present.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_present(&self, bytes: u64) {
        self.present.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_fetched(&self, bytes: u64) {
        self.fetched.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn set_verified(&self) {
        self.present.store(self.total, Ordering::Relaxed);
        self.verified.store(true, Ordering::Release);
    }
}
