//! One prefetch: from a resolved source to a complete snapshot.

use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use futures::{
    FutureExt, StreamExt, TryStreamExt,
    future::{BoxFuture, Shared, try_join},
    stream::{self, FuturesUnordered},
};
use tokio::{
    sync::{Notify, SetOnce},
    time::{Duration, Instant},
};
use weightd_source::Resolution;
use weightd_store::{Reservation, SnapshotEntry, SnapshotManifest, SnapshotRecord, StoreError};
use weightd_types::{BlobKey, CHUNK_BYTES, Layout, ObjectPath, SnapshotKey};

use crate::{
    FetchError, FileProgress, Route,
    fetcher::{Inner, lock},
    flight::Flight,
};

mod index_check;

/// What a prefetch ended with.
#[derive(Debug, Clone)]
pub struct Completed {
    /// The snapshot, complete.
    pub snapshot: SnapshotRecord,
    /// Bytes that came from the origin.
    pub fetched_bytes: u64,
    /// Bytes of objects that were here before.
    pub reused_bytes: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// A prefetch in flight. It goes on as long as any clone of the `Arc` it comes in is alive and waits for it.
pub struct Transfer {
    manifest: Arc<SnapshotManifest>,
    priority: i32,
    files: Arc<Files>,
    /// Bytes a second lately.
    rate: AtomicU64,
    done: Shared<BoxFuture<'static, Result<Completed, FetchError>>>,
}

impl std::fmt::Debug for Transfer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transfer")
            .field("snapshot", &self.key())
            .field("done", &self.done_bytes())
            .finish_non_exhaustive()
    }
}

/// What is known by file, in the order of the manifest.
#[derive(Default)]
struct Files {
    /// What was here before: bytes, and whether the whole was confirmed.
    before: OnceLock<Vec<(u64, bool)>>,
    flights: Vec<OnceLock<Arc<crate::BlobProgress>>>,
    /// Lengths of the blobs, once all are known.
    lengths: SetOnce<Vec<u64>>,
    /// Files that someone reads before their turn.
    urgent: Mutex<Vec<usize>>,
    is_urgent: Notify,
}

impl Files {
    fn state(&self, at: usize) -> (u64, bool) {
        let before = || self.before.get().map_or((0, false), |before| before[at]);
        self.flights[at].get().map_or_else(before, |progress| (progress.present(), progress.is_verified()))
    }

    fn fetched(&self) -> u64 {
        self.flights.iter().filter_map(OnceLock::get).map(|progress| progress.fetched()).sum()
    }
}

impl Transfer {
    pub(crate) fn start(inner: &Arc<Inner>, resolution: Resolution, layout: Layout, priority: i32) -> Self {
        let resolved_at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
        let manifest = Arc::new(SnapshotManifest::new(&resolution.snapshot, layout, resolved_at));
        let left_out = resolution.left_out.into_iter().map(|object| object.path).collect();
        Self::of(inner, manifest, Some(left_out), priority)
    }

    pub(crate) fn resume(inner: &Arc<Inner>, manifest: Arc<SnapshotManifest>, priority: i32) -> Self {
        Self::of(inner, manifest, None, priority)
    }

    fn of(
        inner: &Arc<Inner>,
        manifest: Arc<SnapshotManifest>,
        left_out: Option<Arc<[ObjectPath]>>,
        priority: i32,
    ) -> Self {
        let flights = manifest.objects.iter().map(|_| OnceLock::new()).collect();
        let files = Arc::new(Files { flights, ..Files::default() });
        let run = Run {
            inner: Arc::clone(inner),
            manifest: Arc::clone(&manifest),
            files: Arc::clone(&files),
            left_out,
            priority,
        };
        let done = async move { run.complete().await }.boxed().shared();
        Self { manifest, priority, files, rate: AtomicU64::new(0), done }
    }

    /// The snapshot's key.
    pub fn key(&self) -> SnapshotKey {
        self.manifest.key()
    }

    /// What is being fetched.
    pub fn manifest(&self) -> &Arc<SnapshotManifest> {
        &self.manifest
    }

    /// Higher goes first.
    pub fn priority(&self) -> i32 {
        self.priority
    }

    /// Bytes of objects that are here.
    pub fn done_bytes(&self) -> u64 {
        (0..self.manifest.objects.len()).map(|at| self.files.state(at).0).sum()
    }

    /// Bytes a second over the last few seconds.
    pub fn rate_bytes(&self) -> u64 {
        self.rate.load(Ordering::Relaxed)
    }

    /// How far each file has come, in the order of the manifest.
    pub fn progress(&self) -> Vec<FileProgress<'_>> {
        let files = self.manifest.objects.iter().enumerate().map(|(at, entry)| {
            let (present, verified) = self.files.state(at);
            FileProgress { path: &entry.object.path, present, total: entry.object.size, verified }
        });
        files.collect()
    }

    /// Waits until every blob's length is known, in the order of the manifest: long before the end, and enough to show
    /// the files. `None` when the snapshot was complete before that. Waiting here keeps the transfer going too.
    ///
    /// # Errors
    /// [`FetchError`] when the transfer fails before.
    pub async fn lengths(&self) -> Result<Option<Vec<u64>>, FetchError> {
        tokio::select! {
            biased;
            lengths = self.files.lengths.wait() => Ok(Some(lengths.clone())),
            over = self.wait() => over.map(|_| None),
        }
    }

    /// Whether a blob is here, and what its origin has.
    pub(crate) fn has(&self, blob: &BlobKey) -> bool {
        self.position(blob).is_some_and(|at| self.files.state(at).1)
    }

    fn position(&self, blob: &BlobKey) -> Option<usize> {
        self.manifest.objects.iter().position(|entry| entry.blob == *blob)
    }

    /// Wants a blob's flight to begin although its turn has not come.
    pub(crate) fn want(&self, blob: &BlobKey) {
        let position = self.position(blob);
        lock(&self.files.urgent).extend(position);
        self.files.is_urgent.notify_one();
    }

    /// Waits for the end; this is what keeps it going.
    ///
    /// # Errors
    /// [`FetchError`], the same one for everyone who waits.
    pub async fn wait(&self) -> Result<Completed, FetchError> {
        self.done.clone().await
    }

    pub(crate) fn is_over(&self) -> bool {
        self.done.peek().is_some()
    }

    /// Bytes that came from the origin.
    pub(crate) fn fetched_bytes(&self) -> u64 {
        self.files.fetched()
    }

    /// Takes in the rate of one interval; recent intervals count most.
    pub(crate) fn observe_rate(&self, rate: u64) {
        let before = self.rate.load(Ordering::Relaxed);
        let next = if before == 0 { rate } else { (before * 3 + rate) / 4 };
        self.rate.store(next, Ordering::Relaxed);
    }
}

struct Run {
    inner: Arc<Inner>,
    manifest: Arc<SnapshotManifest>,
    files: Arc<Files>,
    /// What the selection left out; `None` when a snapshot is taken up again, whose index was checked at first.
    left_out: Option<Arc<[ObjectPath]>>,
    priority: i32,
}

impl Run {
    async fn complete(&self) -> Result<Completed, FetchError> {
        let outcome = tokio::select! {
            outcome = self.run() => outcome,
            // No worker would ever bring what is missing.
            () = self.inner.closing.cancelled() => Err(FetchError::Closed),
        };
        let metrics = &self.inner.line.metrics;
        match &outcome {
            Ok(_) => metrics.completed.inc(),
            Err(error) => {
                tracing::warn!(source = %self.manifest.source, kind = error.kind(), %error, "a prefetch failed");
                metrics.failed.inc()
            }
        };
        outcome
    }

    async fn run(&self) -> Result<Completed, FetchError> {
        let (store, key, started) = (&self.inner.store, self.manifest.key(), Instant::now());
        if store.is_complete(key).await? {
            store.touch(key).await?;
            return self.completed(0, self.manifest.size(), started);
        }
        self.check_index_lengths()?;
        let _hold = store.expect(self.manifest.as_ref().clone()).await?;
        let before = store.presence(Arc::clone(&self.manifest)).await?;
        let reused = before.iter().map(|(bytes, _)| bytes).sum();
        self.files.before.get_or_init(|| before);
        let mut times = 0;
        loop {
            let reservation = Arc::new(store.reserve_for(&self.manifest).await?);
            self.fetch_all(&reservation).await?;
            times += 1;
            match store.publish(self.manifest.as_ref().clone()).await {
                // A tier went, or a copy in it turned out to be damaged, while the rest was fetched.
                Err(StoreError::Incomplete { .. }) if times < TIMES => {}
                published => break drop(published?),
            }
        }
        self.completed(self.files.fetched(), reused, started)
    }

    fn completed(
        &self,
        fetched_bytes: u64,
        reused_bytes: u64,
        started: Instant,
    ) -> Result<Completed, FetchError> {
        let key = self.manifest.key();
        let not_found = || StoreError::NotFound { name: key.to_string() };
        let snapshot = self.inner.store.snapshot(&key).ok_or_else(not_found)?;
        Ok(Completed { snapshot, fetched_bytes, reused_bytes, elapsed: started.elapsed() })
    }

    async fn fetch_all(&self, reservation: &Arc<Reservation>) -> Result<(), FetchError> {
        let source = self.inner.opener.open(&self.manifest.source).await?;
        let route = |entry: &SnapshotEntry| Route {
            source: Arc::clone(&source),
            object: entry.object.clone(),
            url: self.manifest.source.object_url(&entry.object.path),
        };
        // Held until the end: a flight that nobody holds is over, and what it had prepared is gone.
        let flights: Vec<OnceLock<Flight>> = self.manifest.objects.iter().map(|_| OnceLock::new()).collect();
        let first_turn = self.inner.take_turns(flights.len());
        let start = |at: usize| -> &Flight {
            let entry = &self.manifest.objects[at];
            let turn = first_turn + at as u64;
            let fly = || self.inner.fly(route(entry), entry.blob, reservation, self.priority, turn);
            let flight = flights[at].get_or_init(fly);
            self.files.flights[at].get_or_init(|| Arc::clone(&flight.progress));
            flight
        };
        let land = async {
            for at in self.positions(|path| path.is_safetensors_index()) {
                start(at).landed.clone().await?;
                self.check_index(at, &start, &route).await?;
            }
            self.land_all(&start).await
        };
        try_join(self.learn_lengths(&start, &route), land).await.map(drop)
    }

    /// Brings every blob down: small files first, because readers want configuration and tokenizer before any tensor;
    /// but what someone waits for goes before its turn, and beyond the number of blobs in flight.
    async fn land_all<'f>(&self, start: &impl Fn(usize) -> &'f Flight) -> Result<(), FetchError> {
        let mut order = self.positions(|_| true);
        order.sort_by_key(|&at| self.manifest.objects[at].object.size > CHUNK_BYTES);
        let mut turns = order.into_iter();
        let mut landings = FuturesUnordered::new();
        // However often it is wanted.
        let mut is_landing = vec![false; self.manifest.objects.len()];
        let mut begins = |at: &usize| !std::mem::replace(&mut is_landing[*at], true);
        loop {
            let free = self.inner.line.config.open_blobs.saturating_sub(landings.len());
            let next = turns.by_ref().filter(&mut begins).take(free);
            landings.extend(next.map(|at| start(at).landed.clone()));
            tokio::select! {
                () = self.files.is_urgent.notified() => {
                    let urgent = std::mem::take(&mut *lock(&self.files.urgent));
                    let next = urgent.into_iter().filter(&mut begins);
                    landings.extend(next.map(|at| start(at).landed.clone()));
                }
                landed = landings.next() => match landed {
                    Some(landed) => landed?,
                    None => return Ok(()),
                }
            }
        }
    }

    /// Finds out how long each blob will be, which for the aligned layout its header says.
    async fn learn_lengths<'f>(
        &self,
        start: &impl Fn(usize) -> &'f Flight,
        route: &impl Fn(&SnapshotEntry) -> Route,
    ) -> Result<(), FetchError> {
        let length = async |at: usize| {
            let entry = &self.manifest.objects[at];
            if entry.blob.layout == Layout::Original {
                return Ok(entry.object.size);
            }
            if let Some(length) = self.inner.store.blob_length(entry.blob).await? {
                return Ok(length);
            }
            let (flight, route) = (start(at), route(entry));
            let prepared = flight.prepared.get_or_try_init(|| self.inner.prepare(&route, entry.blob)).await?;
            Ok::<_, FetchError>(prepared.wanted.placement.blob_len())
        };
        let lengths = stream::iter(self.positions(|_| true)).map(length).buffered(HEADERS_AT_ONCE);
        let lengths = lengths.try_collect().await?;
        // Only this sets them.
        let _ = self.files.lengths.set(lengths);
        Ok(())
    }

    fn positions(&self, is_wanted: impl Fn(&ObjectPath) -> bool) -> Vec<usize> {
        let objects = self.manifest.objects.iter().enumerate();
        objects.filter(|(_, entry)| is_wanted(&entry.object.path)).map(|(at, _)| at).collect()
    }
}

/// How often what is missing in the end is fetched, before that is an error.
const TIMES: u32 = 4;
/// Headers fetched at once while an index is checked.
const HEADERS_AT_ONCE: usize = 16;
