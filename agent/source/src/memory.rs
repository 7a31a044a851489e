//! Objects held by the process itself: for tests, and for embedding weightd where the bytes are made.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use weightd_types::{ByteRange, Checksums, Crc32c, Object, Scheme, SourceUri, Version};

use crate::{ByteStream, Listed, Opener, Source, SourceError};

/// Length of the pieces that a read is delivered in: what an HTTP transport hands over at a time.
const PIECE_BYTES: u64 = 256 << 10;

/// A bucket in memory, reached as `memory://NAME/prefix`. Clones are the same bucket.
#[derive(Debug, Clone)]
pub struct MemoryOrigin {
    bucket: Arc<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    name: String,
    objects: Mutex<Objects>,
    list_calls: AtomicU64,
    read_calls: AtomicU64,
    bytes_served: AtomicU64,
}

#[derive(Debug, Default)]
struct Objects {
    by_name: BTreeMap<String, Stored>,
    last_generation: i64,
}

#[derive(Debug, Clone)]
struct Stored {
    generation: i64,
    bytes: Bytes,
    checksums: Checksums,
    refused: Option<String>,
}

impl MemoryOrigin {
    /// An empty bucket of that name.
    pub fn new(name: impl Into<String>) -> Self {
        let bucket = Bucket {
            name: name.into(),
            objects: Mutex::default(),
            list_calls: AtomicU64::new(0),
            read_calls: AtomicU64::new(0),
            bytes_served: AtomicU64::new(0),
        };
        Self { bucket: Arc::new(bucket) }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.bucket.name
    }

    /// Stores an object, or overwrites it with a new generation; gives the generation.
    pub fn put(&self, name: &str, bytes: impl Into<Bytes>) -> i64 {
        let bytes = bytes.into();
        let checksums = Checksums { crc32c: Some(Crc32c::of(&bytes)), ..Checksums::default() };
        self.put_with_checksums(name, bytes, checksums)
    }

    /// Stores an object with the checksums given, right or wrong; gives the generation.
    pub fn put_with_checksums(&self, name: &str, bytes: impl Into<Bytes>, checksums: Checksums) -> i64 {
        let mut objects = self.bucket.lock();
        objects.last_generation += 1;
        let generation = objects.last_generation;
        let stored = Stored { generation, bytes: bytes.into(), checksums, refused: None };
        objects.by_name.insert(name.to_owned(), stored);
        generation
    }

    /// Makes an object one that is listed and cannot be taken.
    pub fn refuse(&self, name: &str, why: &str) {
        if let Some(stored) = self.bucket.lock().by_name.get_mut(name) {
            stored.refused = Some(why.to_owned());
        }
    }

    /// Removes an object; says whether it was there.
    pub fn remove(&self, name: &str) -> bool {
        self.bucket.lock().by_name.remove(name).is_some()
    }

    /// How many listings were asked for.
    pub fn list_calls(&self) -> u64 {
        self.bucket.list_calls.load(Relaxed)
    }

    /// How many reads were asked for.
    pub fn read_calls(&self) -> u64 {
        self.bucket.read_calls.load(Relaxed)
    }

    /// How many bytes were taken from its streams.
    pub fn bytes_served(&self) -> u64 {
        self.bucket.bytes_served.load(Relaxed)
    }
}

impl Bucket {
    fn lock(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Opener for MemoryOrigin {
    async fn open(&self, uri: &SourceUri) -> Result<Arc<dyn Source>, SourceError> {
        if uri.scheme() != Scheme::Memory || uri.authority() != self.name() {
            return Err(SourceError::NotFound {
                what: uri.to_string(),
                remedy: format!("this process holds memory://{} only", self.name()),
            });
        }
        Ok(Arc::new(MemorySource { bucket: Arc::clone(&self.bucket), uri: uri.clone() }))
    }
}

/// A prefix of a [`MemoryOrigin`].
#[derive(Debug)]
pub struct MemorySource {
    bucket: Arc<Bucket>,
    uri: SourceUri,
}

impl MemorySource {
    fn listed(&self, name: &str, stored: &Stored) -> Listed {
        if let Some(why) = &stored.refused {
            let what = format!("{}/{name}", self.uri.root());
            let remedy = "leave it out with --exclude".to_owned();
            let why = SourceError::Refused { what, why: why.clone(), remedy };
            return Listed::Unfit { name: name.to_owned(), why };
        }
        let (size, version) = (stored.bytes.len() as u64, Version::Generation(stored.generation));
        Listed::new(&self.uri, name.to_owned(), size, version, stored.checksums.clone())
    }
}

#[async_trait]
impl Source for MemorySource {
    async fn list(&self) -> Result<Vec<Listed>, SourceError> {
        self.bucket.list_calls.fetch_add(1, Relaxed);
        let below = match self.uri.prefix() {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        };
        let objects = self.bucket.lock();
        let listing: Vec<Listed> = objects
            .by_name
            .range(below.clone()..)
            .map_while(|(name, stored)| Some((name.strip_prefix(&below)?, stored)))
            .filter(|(name, stored)| !is_marker(name, stored.bytes.len() as u64))
            .map(|(name, stored)| self.listed(name, stored))
            .collect();
        if listing.is_empty() {
            return Err(SourceError::NotFound {
                what: self.uri.to_string(),
                remedy: "it has no objects: check the name and the prefix".to_owned(),
            });
        }
        Ok(listing)
    }

    async fn read(&self, object: &Object, range: ByteRange) -> Result<ByteStream, SourceError> {
        self.bucket.read_calls.fetch_add(1, Relaxed);
        let stored = self.bucket.lock().by_name.get(&self.uri.object_key(&object.path)).cloned();
        let same = |stored: &Stored| object.version == Version::Generation(stored.generation);
        let Some(stored) = stored.filter(same) else {
            let what = self.uri.object_url(&object.path);
            return Err(SourceError::Changed { what, expected: object.version.to_string() });
        };
        let whole = ByteRange::new(0, stored.bytes.len() as u64);
        if !whole.contains(&range) {
            let what = self.uri.object_url(&object.path);
            return Err(SourceError::Protocol { what, detail: format!("{range} is not within {whole}") });
        }
        let (bytes, bucket) = (stored.bytes, Arc::clone(&self.bucket));
        let starts = (range.start..range.end).step_by(usize::try_from(PIECE_BYTES).unwrap_or(usize::MAX));
        let pieces = stream::iter(starts).map(move |start| {
            let piece = ByteRange::at(start, PIECE_BYTES).intersect(&range);
            bucket.bytes_served.fetch_add(piece.len(), Relaxed);
            Ok(slice(&bytes, piece))
        });
        Ok(pieces.boxed())
    }
}

/// The piece of bytes that lie in memory, so that both ends fit.
fn slice(bytes: &Bytes, piece: ByteRange) -> Bytes {
    let at = |offset: u64| usize::try_from(offset).unwrap_or(bytes.len()).min(bytes.len());
    bytes.slice(at(piece.start)..at(piece.end))
}

/// Whether an object only stands for a directory, as consoles make them.
pub(crate) fn is_marker(name: &str, size: u64) -> bool {
    size == 0 && (name.is_empty() || name.ends_with('/'))
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;

    use super::*;

    #[tokio::test]
    async fn what_is_asked_is_counted() {
        let origin = MemoryOrigin::new("m");
        origin.put("model/", "");
        origin.put("model/a", vec![7; 600 << 10]);
        let source = origin.open(&"memory://m/model".parse().unwrap()).await.unwrap();
        let listing = source.list().await.unwrap();
        let object = listing[0].object().unwrap();
        assert_eq!((listing.len(), listing[0].name()), (1, "a"));
        let pieces: Vec<Bytes> =
            source.read(object, ByteRange::new(1, 600 << 10)).await.unwrap().try_collect().await.unwrap();
        assert_eq!(pieces.len(), 3);
        assert_eq!((origin.list_calls(), origin.read_calls()), (1, 1));
        assert_eq!(origin.bytes_served(), (600 << 10) - 1);
    }

    #[tokio::test]
    async fn other_buckets_are_not_found() {
        let error = MemoryOrigin::new("m").open(&"memory://n".parse().unwrap()).await.unwrap_err();
        assert_eq!(error.kind(), "not_found");
    }
}
