//! An index is held to its shards before they are fetched. It may be long, so what needs no request happens on a
//! blocking thread.

use std::{collections::HashSet, sync::Arc};

use futures::{StreamExt, TryStreamExt, stream};
use tokio::task::spawn_blocking;
use weightd_store::{SnapshotEntry, SnapshotManifest};
use weightd_types::{ObjectPath, WeightIndex, WeightIndexError};

use super::{HEADERS_AT_ONCE, Run};
use crate::{FetchError, Route, flight::Flight};

/// An index all of whose shards are there, and where those of the snapshot are in its manifest.
struct Index {
    index: WeightIndex,
    shards: Vec<(String, usize)>,
}

impl Run {
    /// Refuses an index too long to be read, before anything is fetched.
    pub(super) fn check_index_lengths(&self) -> Result<(), FetchError> {
        self.positions(|path| path.is_safetensors_index()).into_iter().try_for_each(|at| {
            let size = self.manifest.objects[at].object.size;
            WeightIndex::check_length(size).map_err(|source| self.refused_index(at, source))
        })
    }

    fn refused_index(&self, at: usize, source: WeightIndexError) -> FetchError {
        FetchError::WeightIndex {
            url: self.manifest.source.object_url(&self.manifest.objects[at].object.path),
            source,
        }
    }

    /// Checks an index that is here against the shards: all listed, each with the tensors it should have. Shards that
    /// the selection leaves out are there, but not ours to check.
    pub(super) async fn check_index<'f>(
        &self,
        at: usize,
        start: &impl Fn(usize) -> &'f Flight,
        route: &impl Fn(&SnapshotEntry) -> Route,
    ) -> Result<(), FetchError> {
        let json = self.inner.store.read_blob(self.manifest.objects[at].blob).await?;
        let (manifest, left_out) = (Arc::clone(&self.manifest), self.left_out.clone());
        let read = move || Index::read(&json, at, &manifest, left_out.as_deref());
        let index = Arc::new(blocking(read).await?.map_err(|source| self.refused_index(at, source))?);
        let checks = (0..index.shards.len()).map(|shard| {
            let position = index.shards[shard].1;
            let entry = &self.manifest.objects[position];
            self.check_shard(Arc::clone(&index), shard, entry, start(position), route(entry))
        });
        let checks: Vec<_> = checks.collect();
        let checked = stream::iter(checks).buffer_unordered(HEADERS_AT_ONCE);
        checked.try_for_each(async |checked| checked.map_err(|source| self.refused_index(at, source))).await
    }

    async fn check_shard(
        &self,
        index: Arc<Index>,
        shard: usize,
        entry: &SnapshotEntry,
        flight: &Flight,
        route: Route,
    ) -> Result<Result<(), WeightIndexError>, FetchError> {
        // What is complete was checked when it was fetched.
        if self.inner.store.is_stored(entry.blob).await? {
            return Ok(Ok(()));
        }
        flight.prepared.get_or_try_init(|| self.inner.prepare(&route, entry.blob)).await?;
        let prepared = Arc::clone(&flight.prepared);
        blocking(move || {
            let header = prepared.get().and_then(|prepared| prepared.header.as_ref());
            let has_tensor = |tensor: &str| header.is_some_and(|header| header.has_tensor(tensor));
            index.index.check_tensors(&index.shards[shard].0, has_tensor)
        })
        .await
    }
}

impl Index {
    fn read(
        json: &[u8],
        at: usize,
        manifest: &SnapshotManifest,
        left_out: Option<&[ObjectPath]>,
    ) -> Result<Self, WeightIndexError> {
        let index = WeightIndex::parse(json)?;
        let directory = manifest.objects[at].object.path.directory();
        let path_of = |shard: &str| {
            if directory.is_empty() { shard.to_owned() } else { format!("{directory}/{shard}") }
        };
        let position = |shard: &str| {
            let path = path_of(shard);
            manifest.objects.binary_search_by(|entry| entry.object.path.as_str().cmp(&path)).ok()
        };
        let left_out = left_out.map(|paths| paths.iter().map(ObjectPath::as_str).collect::<HashSet<_>>());
        let is_left_out =
            |shard: &str| left_out.as_ref().is_none_or(|paths| paths.contains(path_of(shard).as_str()));
        index.check_shards(|shard| position(shard).is_some() || is_left_out(shard))?;
        let found = |shard: &str| Some((shard.to_owned(), position(shard)?));
        let shards = index.shards().into_iter().filter_map(found).collect();
        Ok(Self { index, shards })
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, FetchError> {
    spawn_blocking(work).await.map_err(|_| FetchError::Closed)
}
