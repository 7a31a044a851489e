//! The handle of this room, and the task that keeps as many requests in flight as help.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::Notify,
    task::{JoinHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weightd_source::{Opener, Resolution};
use weightd_store::{SnapshotManifest, Store};
use weightd_types::{BlobKey, ByteRange, Layout, Selection, SnapshotKey, SourceUri};

use crate::{
    Concurrency, Config, FetchError, Line, Metrics, Planner, Request, Transfer,
    flight::{Flights, Flying},
    worker,
};

/// How often rates are looked at.
const INTERVAL: Duration = Duration::from_millis(500);
/// Requests beyond the limit for someone who is reading right now.
const DEMAND_SLOTS: usize = 8;
/// Buffers that fetching leaves to others, so that checking and demands never wait for bulk work.
const SPARE_BUFFERS: usize = 4;

/// Brings snapshots into a store. Clones share everything.
#[derive(Debug, Clone)]
pub struct Fetcher {
    pub(crate) inner: Arc<Inner>,
    scheduler: Arc<Mutex<Option<JoinHandle<()>>>>,
}

pub(crate) struct Inner {
    pub(crate) store: Store,
    pub(crate) opener: Arc<dyn Opener>,
    pub(crate) line: Line,
    pub(crate) flights: Mutex<Flights>,
    pub(crate) wake: Notify,
    pub(crate) tasks: TaskTracker,
    pub(crate) closing: CancellationToken,
    planner: Mutex<Planner>,
    airborne: Mutex<HashMap<BlobKey, Arc<Flying>>>,
    transfers: Mutex<HashMap<SnapshotKey, Weak<Transfer>>>,
    pub(crate) requests_in_flight: AtomicUsize,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetcher").field("opener", &self.opener).finish_non_exhaustive()
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    pub(crate) fn planner(&self) -> MutexGuard<'_, Planner> {
        lock(&self.planner)
    }

    pub(crate) fn airborne(&self) -> MutexGuard<'_, HashMap<BlobKey, Arc<Flying>>> {
        lock(&self.airborne)
    }
}

impl Fetcher {
    /// Starts fetching into a store from the sources an opener makes. Needs a tokio runtime.
    pub fn start(store: Store, opener: Arc<dyn Opener>, config: Config) -> Self {
        let line = Line::new(config);
        let inner = Arc::new(Inner {
            planner: Mutex::new(Planner::new(line.config.range_bytes)),
            store,
            opener,
            line,
            flights: Mutex::default(),
            wake: Notify::new(),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
            airborne: Mutex::default(),
            transfers: Mutex::default(),
            requests_in_flight: AtomicUsize::new(0),
        });
        let scheduler = tokio::spawn(schedule(Arc::clone(&inner)));
        Self { inner, scheduler: Arc::new(Mutex::new(Some(scheduler))) }
    }

    /// The store it fetches into.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// What it counts.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.line.metrics
    }

    /// Lists a source once as the node, and pins what is there.
    ///
    /// # Errors
    /// [`FetchError::Source`], [`FetchError::Resolve`].
    pub async fn resolve(&self, uri: &SourceUri, selection: &Selection) -> Result<Resolution, FetchError> {
        self.inner.line.resolve(self.inner.opener.as_ref(), uri, selection).await
    }

    /// Brings a resolved source into the store. Whoever asks for a snapshot that is already on its way joins that
    /// transfer. The transfer makes progress while someone awaits [`Transfer::wait`].
    pub fn prefetch(&self, resolution: Resolution, layout: Layout, priority: i32) -> Arc<Transfer> {
        self.join_or_insert(Transfer::start(&self.inner, resolution, layout, priority))
    }

    /// As [`Fetcher::prefetch`], of a snapshot that was resolved earlier.
    pub fn resume(&self, manifest: Arc<SnapshotManifest>, priority: i32) -> Arc<Transfer> {
        self.join_or_insert(Transfer::resume(&self.inner, manifest, priority))
    }

    fn join_or_insert(&self, transfer: Transfer) -> Arc<Transfer> {
        let transfer = Arc::new(transfer);
        let mut transfers = lock(&self.inner.transfers);
        transfers.retain(|_, known| known.strong_count() > 0);
        if let Some(known) = transfers.get(&transfer.key()).and_then(Weak::upgrade)
            && !known.is_over()
        {
            return known;
        }
        transfers.insert(transfer.key(), Arc::downgrade(&transfer));
        transfer
    }

    /// Transfers in flight.
    pub fn transfers(&self) -> Vec<Arc<Transfer>> {
        self.inner.live_transfers()
    }

    /// Requests to origins in flight right now.
    pub fn requests_in_flight(&self) -> usize {
        self.inner.requests_in_flight.load(Ordering::Relaxed)
    }

    /// Whether a snapshot is on its way.
    pub fn is_fetching(&self, snapshot: SnapshotKey) -> bool {
        self.transfer(snapshot).is_some()
    }

    fn transfer(&self, snapshot: SnapshotKey) -> Option<Arc<Transfer>> {
        let transfer = lock(&self.inner.transfers).get(&snapshot).and_then(Weak::upgrade);
        transfer.filter(|transfer| !transfer.is_over())
    }

    /// Wants a range of a blob before everything else, because someone is reading there, and what follows it soon.
    /// Says whether the snapshot is on its way at all.
    pub fn demand(&self, snapshot: SnapshotKey, blob: BlobKey, range: ByteRange) -> bool {
        let Some(transfer) = self.transfer(snapshot) else { return false };
        let flying = self.inner.airborne().get(&blob).cloned();
        let mut planner = self.inner.planner();
        match flying {
            Some(flying) => planner.reconsider(&blob, range, |piece| flying.partial.has_piece(piece)),
            None => transfer.want(&blob),
        }
        planner.demand(blob, range);
        drop(planner);
        self.inner.wake.notify_one();
        true
    }

    /// Wants all of a blob before others, because someone waits for the whole. Says whether the snapshot is on its way at all.
    pub fn prefer(&self, snapshot: SnapshotKey, blob: BlobKey) -> bool {
        let Some(transfer) = self.transfer(snapshot) else { return false };
        if transfer.has(&blob) {
            return true;
        }
        if !self.inner.airborne().contains_key(&blob) {
            transfer.want(&blob);
        }
        self.inner.planner().prefer(blob);
        true
    }

    /// Has objects asked for in short ranges for as long as that is kept, because someone takes them in their order and has little
    /// room for what comes before its turn.
    pub fn follow(&self) -> Arc<()> {
        self.inner.planner().follow()
    }

    /// The header of a blob in the aligned layout that is on its way, of a snapshot that is: `None` when either is not so.
    ///
    /// # Errors
    /// [`FetchError`] when the transfer fails before its headers are known.
    pub async fn header(&self, snapshot: SnapshotKey, blob: BlobKey) -> Result<Option<Bytes>, FetchError> {
        let Some(transfer) = self.transfer(snapshot) else { return Ok(None) };
        // By then every header was looked at.
        transfer.lengths().await?;
        Ok(lock(&self.inner.flights).header(&blob))
    }

    /// Ends all requests and waits for them. What arrived stays written; the store records it when it closes.
    pub async fn close(&self) {
        self.inner.closing.cancel();
        self.inner.tasks.close();
        let scheduler = lock(&self.scheduler).take();
        if let Some(scheduler) = scheduler
            && let Err(error) = scheduler.await
        {
            tracing::error!(%error, "the scheduler ended badly");
        }
        self.inner.tasks.wait().await;
    }
}

impl Inner {
    fn live_transfers(&self) -> Vec<Arc<Transfer>> {
        let transfers = lock(&self.transfers);
        transfers.values().filter_map(Weak::upgrade).filter(|transfer| !transfer.is_over()).collect()
    }

    fn next_request(&self, in_flight: usize, limit: usize) -> Option<Request> {
        let mut planner = self.planner();
        if in_flight < limit {
            planner.next(limit)
        } else if in_flight < limit + DEMAND_SLOTS {
            planner.next_demanded()
        } else {
            None
        }
    }

    async fn serve(self: Arc<Self>, request: Request, arriving: Arriving) {
        let flying = self.airborne().get(&request.key).cloned();
        let _ended = Ended { inner: &self, flying: flying.as_ref(), request: &request };
        if let Some(flying) = &flying {
            tokio::select! {
                biased;
                () = flying.cancelled.cancelled() => {}
                outcome = worker::run(&self, flying, &request, arriving) => {
                    if let Err(error) = outcome {
                        self.crash(flying, error);
                    }
                }
            }
        }
    }
}

/// A request whose bytes still come. Dropped when they are here: who writes them needs no connection, and the next request can begin.
pub(crate) struct Arriving(Arc<Inner>);

impl Arriving {
    fn begin(inner: &Arc<Inner>) -> Self {
        inner.requests_in_flight.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(inner))
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.0.requests_in_flight.fetch_sub(1, Ordering::Relaxed);
        self.0.wake.notify_one();
    }
}

/// Tells the planner that a request ended, however it did: pieces that stay in flight would be waited for for ever.
struct Ended<'a> {
    inner: &'a Inner,
    flying: Option<&'a Arc<Flying>>,
    request: &'a Request,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if let Some(flying) = self.flying.filter(|_| std::thread::panicking()) {
            self.inner.crash(flying, FetchError::Closed);
        }
        self.inner.planner().ended(self.request);
    }
}

async fn schedule(inner: Arc<Inner>) {
    let config = &inner.line.config;
    let buffers = inner.store.pool().count().saturating_sub(SPARE_BUFFERS).max(1);
    let mut concurrency =
        Concurrency::new(config.min_requests.min(buffers), config.max_requests.min(buffers));
    let mut workers = JoinSet::new();
    let mut gauge = Gauge::new();
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let in_flight = || inner.requests_in_flight.load(Ordering::Relaxed);
    loop {
        while let Some(request) = inner.next_request(in_flight(), concurrency.limit()) {
            let arriving = Arriving::begin(&inner);
            workers.spawn(Arc::clone(&inner).serve(request, arriving));
        }
        gauge.was_reached |= in_flight() >= concurrency.limit();
        tokio::select! {
            () = inner.closing.cancelled() => break,
            () = inner.wake.notified() => {}
            Some(ended) = workers.join_next(), if !workers.is_empty() => {
                if let Err(error) = ended && error.is_panic() {
                    tracing::error!(%error, "a worker panicked");
                }
            }
            _ = ticks.tick() => gauge.observe(&inner, &mut concurrency),
        }
    }
    workers.shutdown().await;
}

/// What the last interval began with.
struct Gauge {
    since: Instant,
    fetched: u64,
    throttled: u64,
    was_reached: bool,
    by_transfer: HashMap<SnapshotKey, u64>,
}

impl Gauge {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            fetched: 0,
            throttled: 0,
            was_reached: false,
            by_transfer: HashMap::new(),
        }
    }

    fn observe(&mut self, inner: &Inner, concurrency: &mut Concurrency) {
        let metrics = &inner.line.metrics;
        let elapsed = self.since.elapsed().as_secs_f64();
        if elapsed <= 0.0 {
            return;
        }
        let (fetched, throttled) = (metrics.fetched_bytes.get(), metrics.throttled.get());
        #[expect(clippy::cast_precision_loss, reason = "a rate needs three digits")]
        let rate = |bytes: u64| bytes as f64 / elapsed;
        concurrency.observe(rate(fetched - self.fetched), self.was_reached, throttled > self.throttled);
        let mut by_transfer = HashMap::new();
        for transfer in inner.live_transfers() {
            let bytes = transfer.fetched_bytes();
            let before = self.by_transfer.get(&transfer.key()).copied().unwrap_or(bytes);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a rate is positive"
            )]
            transfer.observe_rate(rate(bytes.saturating_sub(before)) as u64);
            by_transfer.insert(transfer.key(), bytes);
        }
        let gauge = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        metrics.requests_in_flight.set(gauge(inner.requests_in_flight.load(Ordering::Relaxed)));
        metrics.request_limit.set(gauge(concurrency.limit()));
        *self = Self { since: Instant::now(), fetched, throttled, was_reached: false, by_transfer };
    }
}
