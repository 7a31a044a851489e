//! Cloud Storage FUSE.

use std::path::Path;

use anyhow::Result;
use weightd_benches::Gcsfuse;

use crate::world::{Bucket, Way};

/// How it is told to, with its cache.
pub(crate) const CACHED: &str =
    "metadata cached for ever, file cache with parallel downloads on the same disk, 1 MiB read ahead";
/// How it is told to, without.
pub(crate) const UNCACHED: &str = "metadata cached for ever, no file cache, 1 MiB read ahead";

/// For a job that reads all of a model in order: with its cache, and over plain HTTP also without, which takes about as long. Without it
/// a shaped bucket takes tens of minutes, because each of many small requests waits for the first byte.
pub(crate) fn settings(way: Way) -> impl Iterator<Item = (bool, &'static str)> {
    let both = [(true, CACHED), (false, UNCACHED)];
    both.into_iter().filter(move |(has_cache, _)| *has_cache || way == Way::Plain)
}

/// Mounts the bucket, with nothing cached yet.
pub(crate) fn mount(directory: &Path, bucket: &Bucket, has_cache: bool) -> Result<Gcsfuse> {
    Gcsfuse::mount_with(directory, bucket.endpoint(), &bucket.environment(), has_cache)
}
