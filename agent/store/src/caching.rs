//! Blobs whose bytes stay in the page cache while they arrive, because someone will read them from there.
//!
//! Everything else goes past the page cache, which a whole model would sweep clean. For a reader who is about to map what
//! arrives, that would mean reading from the disk what was in memory a moment ago.

use std::collections::HashSet;

use weightd_types::BlobKey;

use crate::{Store, store::lock};

impl Store {
    /// Keeps these blobs in the page cache as they arrive, and no others. Counts at once for those that are arriving.
    pub fn set_cached(&self, blobs: HashSet<BlobKey>) {
        let mut cached = lock(&self.inner.cached);
        *cached = blobs;
        for (key, partial) in lock(&self.inner.active).iter() {
            partial.file().set_cached(cached.contains(key));
        }
    }

    /// Whether a blob is one of those that stay in the page cache.
    pub fn is_cached(&self, blob: &BlobKey) -> bool {
        lock(&self.inner.cached).contains(blob)
    }
}
