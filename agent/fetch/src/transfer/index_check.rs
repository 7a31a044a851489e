//! An index is held to its shards before they are fetched. It may be long, so what needs no request happens on a
//! blocking thread.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use tokio::task::spawn_blocking;
use weightd_store::SnapshotEntry;
use weightd_types::{WeightIndex, WeightIndexError};

use super::{HEADERS_AT_ONCE, Run};
use crate::{FetchError, Route, ShardIndex, flight::Flight};

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
        let read = move || ShardIndex::read(&json, at, &manifest, left_out.as_deref());
        let index = Arc::new(blocking(read).await?.map_err(|source| self.refused_index(at, source))?);
        let checks = (0..index.shards().len()).map(|shard| {
            let position = index.shards()[shard].1;
            let entry = &self.manifest.objects[position];
            self.check_shard(Arc::clone(&index), shard, entry, start(position), route(entry))
        });
        let checks: Vec<_> = checks.collect();
        let checked = stream::iter(checks).buffer_unordered(HEADERS_AT_ONCE);
        checked.try_for_each(async |checked| checked.map_err(|source| self.refused_index(at, source))).await
    }

    async fn check_shard(
        &self,
        index: Arc<ShardIndex>,
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
            index.check_tensors(&index.shards()[shard].0, has_tensor)
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, FetchError> {
    spawn_blocking(work).await.map_err(|_| FetchError::Closed)
}
