//! How much of the disk the store uses, and promises of more.

use std::{
    io,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use weightd_types::BlobKey;

use crate::{Store, StoreError, io::is_leftover, store::lock};

/// Counters behind [`DiskUsage`].
#[derive(Debug, Default)]
pub(crate) struct Usage {
    /// Bytes of blob files; `None` until the directory was walked, which a command that fetches nothing is spared.
    used: Option<u64>,
    /// Bytes promised and not allocated yet.
    reserved: u64,
}

impl Usage {
    pub(crate) fn allocate(&mut self, len: u64) {
        self.used = self.used.map(|used| used + len);
    }

    pub(crate) fn release(&mut self, len: u64) {
        self.used = self.used.map(|used| used.saturating_sub(len));
    }
}

/// Use of the disk at one moment, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskUsage {
    /// Blob files.
    pub used: u64,
    /// Promised to transfers and not allocated yet.
    pub reserved: u64,
    /// Free on the file system.
    pub free: u64,
    /// Size of the file system.
    pub total: u64,
    /// What must stay free of it.
    pub floor: u64,
}

/// Room that was promised to a transfer. What was not allocated returns when it is dropped.
#[derive(Debug)]
pub struct Reservation {
    store: Store,
    remaining: AtomicU64,
}

impl Reservation {
    pub(crate) fn new(store: Store, bytes: u64) -> Self {
        lock(&store.inner.usage).reserved += bytes;
        Self { store, remaining: AtomicU64::new(bytes) }
    }

    /// Gives promised bytes up that were allocated. A blob may be somewhat longer than was promised for it.
    pub(crate) fn redeem(&self, len: u64) {
        let take = |remaining: u64| Some(remaining.saturating_sub(len));
        let before =
            self.remaining.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).unwrap_or_default();
        let mut usage = lock(&self.store.inner.usage);
        usage.reserved = usage.reserved.saturating_sub(before.min(len));
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut usage = lock(&self.store.inner.usage);
        usage.reserved = usage.reserved.saturating_sub(*self.remaining.get_mut());
    }
}

impl Store {
    /// Use of the disk right now.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub async fn usage(&self) -> Result<DiskUsage, StoreError> {
        self.blocking(Self::usage_now).await
    }

    pub(crate) fn usage_now(&self) -> Result<DiskUsage, StoreError> {
        let known = lock(&self.inner.usage).used;
        let used = match known {
            Some(used) => used,
            None => self.walk()?,
        };
        let root = self.paths().root();
        let found =
            rustix::fs::statvfs(root).map_err(|error| StoreError::io("inspect", root)(error.into()))?;
        let total = found.f_blocks * found.f_frsize;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a share of a disk needs no exact bytes"
        )]
        let floor = (total as f64 * self.config().floor) as u64;
        let reserved = lock(&self.inner.usage).reserved;
        Ok(DiskUsage { used, reserved, free: found.f_bavail * found.f_frsize, total, floor })
    }

    /// Adds up the blob files. Held while it walks, so that nothing is allocated uncounted.
    fn walk(&self) -> Result<u64, StoreError> {
        let mut usage = lock(&self.inner.usage);
        let mut used = 0;
        for (path, metadata) in blob_files(&self.paths().blobs())? {
            // Blobs are `<key>`; manifests and headers beside them are too small to count.
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let metadata = metadata.map_err(StoreError::io("inspect", &path))?;
            if name.parse::<BlobKey>().is_ok() && metadata.is_file() {
                used += metadata.len();
            } else if is_leftover(&path) {
                self.inner.engine.remove(&path).map_err(StoreError::io("remove", &path))?;
            }
        }
        usage.used = Some(used);
        Ok(used)
    }

    /// Names the disk's state in an error that is about space or permission.
    pub(crate) fn disk_error(
        &self,
        action: &'static str,
        path: &Path,
        needed: u64,
        source: io::Error,
    ) -> StoreError {
        let directory = self.paths().root().to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                let available = self.usage_now().map_or(0, |usage| usage.free);
                let limit = format!("the file system refused: {source}");
                StoreError::Full { directory, needed, available, limit }
            }
            io::ErrorKind::ReadOnlyFilesystem => StoreError::ReadOnly { directory },
            _ => StoreError::io(action, path)(source),
        }
    }
}

type Found = (std::path::PathBuf, io::Result<std::fs::Metadata>);

/// Every file below `blobs/`.
pub(crate) fn blob_files(blobs: &Path) -> Result<Vec<Found>, StoreError> {
    let mut found = Vec::new();
    for directory in entries(blobs)? {
        for path in entries(&directory)? {
            let metadata = std::fs::symlink_metadata(&path);
            found.push((path, metadata));
        }
    }
    Ok(found)
}

/// Whether a file of the store is there. What someone put in its place, such as a symbolic link, is not followed.
pub(crate) fn is_file(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|found| found.is_file())
}

/// As [`is_file`], of a directory.
pub(crate) fn is_directory(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}

/// Says that something is not the store's, and stays.
pub(crate) fn warn_of_stranger(path: &Path) {
    tracing::warn!(path = %path.display(), "this is not the store's; leaving it where it is");
}

/// Paths in a directory; none when it is not there.
pub(crate) fn entries(directory: &Path) -> Result<Vec<std::path::PathBuf>, StoreError> {
    let listed = match std::fs::read_dir(directory) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        other => {
            other.and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>())
        }
    };
    listed.map_err(StoreError::io("list", directory))
}
