//! Reads what is stored again and again in the background, so that rot is found before a reader gets it.
//!
//! Bind mounts and files that are read through give what the disk gives: nobody compares that with a checksum but this.
//! It is the least urgent work there is. It reads one chunk at a time at a set rate, stands still while requests to
//! origins are in flight, takes a buffer only when nobody waits for one, and holds no snapshot: the room of one that is
//! evicted meanwhile is free within a second.

mod order;
mod pace;

use std::{
    collections::BTreeMap,
    num::NonZeroU64,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{sync::mpsc, time::sleep};
use weightd_store::{SnapshotRecord, Store, StoreError, StoredBlob, io::Buffer};
use weightd_types::{BlobKey, SnapshotKey};

use crate::{
    BadChunk, FetchError, Fetcher, VerifyEvent, VerifySummary,
    fetcher::Inner,
    verify::{Events, Subject, Verification},
};
use order::{Order, anywhere};
use pace::Pace;

/// Damage that may wait for a slow listener.
const QUEUE: usize = 64;
/// Between two rounds: a store of next to nothing is not read all the time.
const REST: Duration = Duration::from_secs(5);
/// How soon it is noticed that a blob is gone, or that nobody fetches any more.
const LOOK: Duration = Duration::from_secs(1);
/// A file costs some reads before its first byte: a store of tiny ones is no cheaper per second than one of large ones.
const OPENING_BYTES: u64 = 64 << 10;

impl Fetcher {
    /// Reads every chunk of every complete blob at the configured rate, for ever, and compares it with what was recorded.
    /// Bad ones are repaired as [`Fetcher::verify`] repairs them; what cannot be repaired is no longer served as
    /// complete. Gives what was damaged, which is also logged and counted; a listener that is slow misses some. The
    /// channel is closed when scrubbing is off, or the fetcher ends.
    pub fn scrub(&self) -> mpsc::Receiver<BadChunk> {
        let (damaged, received) = mpsc::channel(QUEUE);
        let rate = self.inner.line.config.scrub_bytes.and_then(NonZeroU64::new);
        let Some(rate) = rate else { return received };
        let inner = Arc::clone(&self.inner);
        self.inner.tasks.spawn(async move {
            let closing = inner.closing.clone();
            let scrub = Scrub { inner, pace: Pace::new(rate), order: Order::default(), damaged };
            tokio::select! {
                () = closing.cancelled() => {}
                error = scrub.go_round() => tracing::debug!(%error, "the scrub ended"),
            }
        });
        received
    }
}

struct Scrub {
    inner: Arc<Inner>,
    pace: Pace,
    order: Order,
    damaged: mpsc::Sender<BadChunk>,
}

impl Scrub {
    /// Round after round, until the store is closed.
    async fn go_round(mut self) -> StoreError {
        loop {
            // What arrives during a round was compared with its origin just now: it can wait for the next.
            let needed = needed(&self.inner.store);
            let round = self.order.round(needed.keys().copied().collect());
            for &key in &round {
                match self.scrub_blob(key, needed[&key]).await {
                    Err(FetchError::Store(error)) if matches!(*error, StoreError::Closed) => {
                        return StoreError::Closed;
                    }
                    Err(error) => tracing::warn!(blob = %key, %error, "a stored blob could not be scrubbed"),
                    Ok(()) => {}
                }
                self.order.was_read(key);
            }
            if !round.is_empty() {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
                let ended = &self.inner.line.metrics.scrub_round_ended;
                ended.set(i64::try_from(now).unwrap_or(i64::MAX));
                tracing::debug!(blobs = round.len(), "a round of the scrub ended");
            }
            sleep(REST).await;
        }
    }

    async fn scrub_blob(&mut self, key: BlobKey, of: SnapshotKey) -> Result<(), FetchError> {
        self.pace.book(OPENING_BYTES);
        let Ok(Some(blob)) = self.inner.store.stored_blob(key).await else {
            return self.look_closer(key, of, None).await;
        };
        let count = blob.placement().chunk_count();
        // Not always from the front: an agent that is restarted often would never come to the end of a large blob.
        let first = anywhere(count);
        for chunk in (first..count).chain(0..first) {
            self.pace.book(blob.placement().chunk_range(chunk).len());
            let Some(buffer) = self.turn(key).await? else { return self.look_closer(key, of, None).await };
            let is_good = is_good(&blob, chunk, buffer).await;
            self.inner.line.metrics.scrubbed_chunks.inc();
            if !is_good {
                self.look_closer(key, of, Some(chunk)).await?;
            }
        }
        Ok(())
    }

    /// Waits until it may read on. `None` when the blob is not complete any more: an open file that was evicted would
    /// keep its room.
    async fn turn(&self, key: BlobKey) -> Result<Option<Buffer>, StoreError> {
        loop {
            if !self.inner.store.is_stored(key).await? {
                return Ok(None);
            }
            let early = self.pace.early();
            if early.is_zero() {
                let is_quiet = self.inner.requests_in_flight.load(Ordering::Relaxed) == 0;
                if let Some(buffer) = is_quiet.then(|| self.inner.store.pool().try_acquire()).flatten() {
                    return Ok(Some(buffer));
                }
            }
            sleep(if early.is_zero() { LOOK } else { early.min(LOOK) }).await;
        }
    }

    /// Looks again at a chunk that read wrong, or at a blob that cannot be opened as it should. The snapshot is held
    /// meanwhile, so that what is being evicted is not taken for damaged.
    async fn look_closer(&self, key: BlobKey, of: SnapshotKey, chunk: Option<u32>) -> Result<(), FetchError> {
        let store = &self.inner.store;
        let Ok(_hold) = store.hold(of) else { return Ok(()) };
        let Some(record) = store.snapshot(&of) else { return Ok(()) };
        if !record.complete && matches!(store.stored_blob(key).await, Ok(None)) {
            // It is on its way, or an earlier look found it missing.
            return Ok(());
        }
        let Some(subject) = Subject::of(&record.manifest, &key) else { return Ok(()) };
        let (events, mut found) = mpsc::channel(QUEUE);
        let mut damages = Vec::new();
        let listening = async {
            while let Some(event) = found.recv().await {
                if let Ok(VerifyEvent::Bad(bad)) = event {
                    damages.push(bad);
                }
            }
        };
        let (outcome, ()) = tokio::join!(self.mend(&subject, chunk, events), listening);
        // Not before all is done that could be: whoever is told finds the store as it will be.
        damages.into_iter().for_each(|bad| self.tell(bad));
        outcome
    }

    async fn mend(&self, subject: &Subject, chunk: Option<u32>, events: Events) -> Result<(), FetchError> {
        let (store, key) = (&self.inner.store, subject.entry.blob);
        let (inner, summary) = (Arc::clone(&self.inner), VerifySummary::default());
        let mut verification = Verification { inner, events, repair: true, summary };
        match (store.stored_blob(key).await, chunk) {
            (Ok(Some(blob)), Some(chunk)) => {
                if !is_good(&blob, chunk, store.pool().acquire().await).await {
                    verification.mend(subject, &blob, &[chunk]).await?;
                }
            }
            _ => verification.check_blob(subject, subject.entry.object.size).await?,
        }
        // Of what had to be brought back whole, snapshots that were complete are so again.
        for record in store.snapshots().iter().filter(|record| needs(record, &key)) {
            self.inner.restore(&record.manifest).await?;
        }
        Ok(())
    }

    fn tell(&self, bad: BadChunk) {
        let metrics = &self.inner.line.metrics;
        metrics.scrub_bad_chunks.inc();
        metrics.scrub_repaired_chunks.inc_by(u64::from(bad.repaired));
        tracing::warn!(
            source = %bad.source,
            path = bad.path,
            range = %bad.range,
            blob = %bad.blob,
            repaired = bad.repaired,
            failure = bad.failure.as_deref(),
            "the scrub found bytes that rotted on disk"
        );
        // The log has it, whoever listens.
        let _ = self.damaged.try_send(bad);
    }
}

/// A chunk that the disk cannot read is as bad as one that reads wrong.
async fn is_good(blob: &StoredBlob, chunk: u32, buffer: Buffer) -> bool {
    blob.check_chunk(chunk, buffer).await.is_ok_and(|(_, good)| good)
}

fn needs(record: &SnapshotRecord, key: &BlobKey) -> bool {
    record.manifest.objects.iter().any(|entry| entry.blob == *key)
}

/// Every blob that a snapshot needs, with a snapshot that does: a complete one if there is one.
fn needed(store: &Store) -> BTreeMap<BlobKey, SnapshotKey> {
    let mut records = store.snapshots();
    records.sort_by_key(|record| record.complete);
    let blobs_of = |record: &SnapshotRecord| {
        let key = record.key();
        record.manifest.objects.iter().map(move |entry| (entry.blob, key)).collect::<Vec<_>>()
    };
    records.iter().flat_map(blobs_of).collect()
}
