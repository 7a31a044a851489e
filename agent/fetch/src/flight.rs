//! One blob on its way into the store. However many prefetches want it, there is one flight, and it goes on as long as
//! any of them does.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI32, Ordering},
    },
};

use bytes::Bytes;
use futures::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};
use tokio::sync::{OnceCell, oneshot};
use tokio_util::sync::CancellationToken;
use weightd_store::{PartialBlob, Reservation};
use weightd_types::BlobKey;

use crate::{
    BlobProgress, FetchError, Mismatch, Route,
    confirm::confirm,
    fetcher::{Inner, lock},
    prepare::Prepared,
};

/// A blob whose chunks are being fetched.
#[derive(Debug)]
pub(crate) struct Flying {
    pub(crate) route: Route,
    pub(crate) partial: Arc<PartialBlob>,
    pub(crate) progress: Arc<BlobProgress>,
    /// Ends the workers when nobody wants the blob any more.
    pub(crate) cancelled: CancellationToken,
    /// Takes the first error of any worker.
    failed: Mutex<Option<oneshot::Sender<FetchError>>>,
}

impl Flying {
    /// A blob that nobody knows of yet, and what will say that a worker failed.
    pub(crate) fn new(
        route: Route,
        partial: Arc<PartialBlob>,
        progress: Arc<BlobProgress>,
    ) -> (Self, oneshot::Receiver<FetchError>) {
        let (fail, failed) = oneshot::channel();
        let (cancelled, waiting) = (CancellationToken::new(), Mutex::new(Some(fail)));
        (Self { route, partial, progress, cancelled, failed: waiting }, failed)
    }

    fn fail(&self, error: FetchError) {
        let waiting = lock(&self.failed).take();
        if let Some(waiting) = waiting {
            // Nobody waits when the flight was given up at the same moment.
            let _ = waiting.send(error);
        }
    }
}

impl Inner {
    /// Ends a flight with an error, before anything can be asked for again that a worker has given up.
    pub(crate) fn crash(&self, flying: &Arc<Flying>, error: FetchError) {
        self.ground(flying);
        flying.fail(error);
    }

    /// Forgets a flight; the next one of the same blob may have taken off already, and goes on.
    fn ground(&self, flying: &Arc<Flying>) {
        let key = flying.partial.key();
        let mut airborne = self.airborne();
        if airborne.get(&key).is_some_and(|known| Arc::ptr_eq(known, flying)) {
            airborne.remove(&key);
            self.planner().remove(&key);
        }
    }
}

type Outcome = Result<(), FetchError>;
type Future = BoxFuture<'static, Outcome>;

/// A flight that someone waits for.
#[derive(Clone)]
pub(crate) struct Flight {
    pub(crate) landed: Shared<Future>,
    pub(crate) progress: Arc<BlobProgress>,
    /// What had to be known first; filled in by whoever needs it first.
    pub(crate) prepared: Arc<OnceCell<Prepared>>,
    priority: Arc<AtomicI32>,
}

/// A flight that goes on only as long as someone waits for it.
struct WeakFlight {
    landed: WeakShared<Future>,
    progress: Arc<BlobProgress>,
    prepared: Arc<OnceCell<Prepared>>,
    priority: Arc<AtomicI32>,
}

/// The flights there are.
#[derive(Default)]
pub(crate) struct Flights {
    by_key: HashMap<BlobKey, WeakFlight>,
    /// How many turns were taken.
    turns: u64,
    /// Number of entries at which those that ended are swept out.
    sweep_at: usize,
}

impl Flights {
    fn sweep(&mut self) {
        if self.by_key.len() >= self.sweep_at {
            self.by_key.retain(|_, flight| flight.landed.upgrade().is_some());
            self.sweep_at = 2 * self.by_key.len() + 64;
        }
    }

    /// The header of a blob that someone has prepared.
    pub(crate) fn header(&self, key: &BlobKey) -> Option<Bytes> {
        Some(self.by_key.get(key)?.prepared.get()?.header.as_ref()?.raw().clone())
    }

    fn get(&self, key: &BlobKey) -> Option<Flight> {
        let flight = self.by_key.get(key)?;
        // One that is over is not joined: after a failure the next caller may have better luck, and what arrived may be
        // gone again.
        let landed = flight.landed.upgrade().filter(|landed| landed.peek().is_none())?;
        let WeakFlight { progress, prepared, priority, .. } = flight;
        let (progress, prepared, priority) =
            (Arc::clone(progress), Arc::clone(prepared), Arc::clone(priority));
        Some(Flight { landed, progress, prepared, priority })
    }
}

impl Inner {
    /// Takes so many turns for flights, and gives the first of them. What has the lower turn goes first, whichever is prepared first.
    pub(crate) fn take_turns(&self, count: usize) -> u64 {
        let mut flights = lock(&self.flights);
        let first = flights.turns;
        flights.turns += count as u64;
        first
    }

    /// The flight of a blob that is on its way already.
    pub(crate) fn flight_of(&self, key: &BlobKey) -> Option<Flight> {
        lock(&self.flights).get(key)
    }

    /// Joins the flight of a blob, or starts it.
    pub(crate) fn fly(
        self: &Arc<Self>,
        route: Route,
        key: BlobKey,
        reservation: &Arc<Reservation>,
        priority: i32,
        turn: u64,
    ) -> Flight {
        let mut flights = lock(&self.flights);
        if let Some(flight) = flights.get(&key) {
            // Whether it has taken off yet or not.
            flight.priority.fetch_max(priority, Ordering::AcqRel);
            self.planner().raise(&key, priority);
            return flight;
        }
        flights.sweep();
        let progress = Arc::new(BlobProgress::new(route.object.size));
        let prepared = Arc::new(OnceCell::new());
        let priority = Arc::new(AtomicI32::new(priority));
        let leg = Leg {
            inner: Arc::clone(self),
            route,
            key,
            progress: Arc::clone(&progress),
            prepared: Arc::clone(&prepared),
            reservation: Arc::clone(reservation),
            priority: Arc::clone(&priority),
            turn,
        };
        let landed = async move { leg.run().await }.boxed().shared();
        if let Some(weak) = landed.downgrade() {
            let (progress, prepared, priority) =
                (Arc::clone(&progress), Arc::clone(&prepared), Arc::clone(&priority));
            flights.by_key.insert(key, WeakFlight { landed: weak, progress, prepared, priority });
        }
        Flight { landed, progress, prepared, priority }
    }
}

/// All that a flight needs.
struct Leg {
    inner: Arc<Inner>,
    route: Route,
    key: BlobKey,
    progress: Arc<BlobProgress>,
    prepared: Arc<OnceCell<Prepared>>,
    reservation: Arc<Reservation>,
    priority: Arc<AtomicI32>,
    /// Its place among all flights.
    turn: u64,
}

impl Leg {
    async fn run(self) -> Outcome {
        let inner = &self.inner;
        let url = &self.route.url;
        let mut attempts = 0;
        loop {
            if inner.store.is_stored(self.key).await? {
                break;
            }
            let again;
            let prepared = if attempts == 0 {
                self.prepared.get_or_try_init(|| inner.prepare(&self.route, self.key)).await?
            } else {
                // The header may be what was damaged.
                again = inner.prepare(&self.route, self.key).await?;
                &again
            };
            let partial = inner.store.begin(prepared.wanted.clone(), &self.reservation).await?;
            self.progress.set_present(partial.present_bytes());
            inner.fill_locally(&partial).await?;
            let mismatch = self.fetch_and_confirm(&partial).await?;
            attempts += 1;
            let Some(mismatch) = mismatch else {
                inner.store.finish(partial).await?;
                break;
            };
            inner.line.metrics.mismatches.inc();
            inner.store.discard_partial(&partial).await?;
            self.progress.set_present(0);
            let (expected, found) = (mismatch.expected, mismatch.found);
            if attempts > inner.line.config.refetches {
                return Err(FetchError::Corrupt { url: url.clone(), expected, found, attempts });
            }
            tracing::warn!(url, expected, found, "the object does not match its checksum; fetching it again");
        }
        self.progress.set_verified();
        Ok(())
    }

    async fn fetch_and_confirm(&self, partial: &Arc<PartialBlob>) -> Result<Option<Mismatch>, FetchError> {
        let (flying, failed) =
            Flying::new(self.route.clone(), Arc::clone(partial), Arc::clone(&self.progress));
        let flying = Arc::new(flying);
        let _airborne =
            Airborne::take_off(&self.inner, &flying, self.priority.load(Ordering::Acquire), self.turn);
        tokio::select! {
            outcome = confirm(&self.inner, &flying) => outcome,
            error = failed => Err(error.unwrap_or(FetchError::Closed)),
        }
    }
}

/// A blob known to the planner; forgotten, and its workers ended, when this is dropped.
struct Airborne {
    inner: Arc<Inner>,
    flying: Arc<Flying>,
}

impl Airborne {
    fn take_off(inner: &Arc<Inner>, flying: &Arc<Flying>, priority: i32, turn: u64) -> Self {
        let partial = &flying.partial;
        let (key, placement) = (partial.key(), Arc::clone(partial.placement()));
        {
            let mut airborne = inner.airborne();
            let mut planner = inner.planner();
            // A flight that was given up may still be on its way out of the sky; what it asked for ends with it.
            planner.remove(&key);
            planner.add(key, placement, |piece| partial.has_piece(piece), priority, turn);
            airborne.insert(key, Arc::clone(flying));
        }
        inner.wake.notify_one();
        Self { inner: Arc::clone(inner), flying: Arc::clone(flying) }
    }
}

impl Drop for Airborne {
    fn drop(&mut self) {
        self.inner.ground(&self.flying);
        // Last: a worker that ends while the planner still knows the blob would have its pieces asked for again.
        self.flying.cancelled.cancel();
    }
}
