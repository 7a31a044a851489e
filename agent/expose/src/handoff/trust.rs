//! Whether the bytes of a blob are what the origin has.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::sleep};
use weightd_store::{Store, StoreError};
use weightd_types::{BlobKey, Crc32c};

/// How often it is looked whether a blob was confirmed, and whether anyone still wants to know.
const LOOK: Duration = Duration::from_millis(100);

/// Why what was handed out is not what the origin has.
const DAMAGED: &str = "part of it was damaged on its way, and was fetched again";

/// What is known of the bytes of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trust {
    /// They arrived whole; what the origin says of the whole was not compared yet.
    Provisional,
    /// The origin has the same, as far as they are here; what comes later is compared as it comes.
    Verified,
    /// Some are not: why.
    Wrong(Arc<str>),
}

/// Checksums of chunks as they were handed out, compared with what they have to be as soon as both are known.
#[derive(Debug)]
pub(crate) struct Seen {
    chunks: Mutex<Vec<Option<Crc32c>>>,
    /// Once the origin has confirmed them.
    expected: OnceLock<Vec<Crc32c>>,
    is_wrong: AtomicBool,
    /// Why it was thrown away, if it was.
    discarded: OnceLock<Arc<str>>,
    /// Told of everything that changes what is known.
    changed: Arc<Notify>,
}

impl Seen {
    /// Of so many chunks, none of which was seen.
    pub(crate) fn new(chunks: u32, changed: Arc<Notify>) -> Self {
        let chunks = Mutex::new(vec![None; chunks as usize]);
        let (expected, is_wrong, discarded) = (OnceLock::new(), AtomicBool::new(false), OnceLock::new());
        Self { chunks, expected, is_wrong, discarded, changed }
    }

    fn chunks(&self) -> MutexGuard<'_, Vec<Option<Crc32c>>> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A chunk has that checksum. Says whether it may be right: what was seen before was the same, and what is expected is.
    pub(crate) fn saw(&self, chunk: u32, crc: Crc32c) -> bool {
        let mut chunks = self.chunks();
        let is_expected =
            self.expected.get().is_none_or(|expected| expected.get(chunk as usize) == Some(&crc));
        let is_like_before = chunks[chunk as usize].is_none_or(|before| before == crc);
        if !is_expected || !is_like_before {
            self.is_wrong.store(true, Ordering::Release);
        }
        chunks[chunk as usize] = Some(crc);
        is_expected && is_like_before
    }

    /// Takes in what the chunks' checksums have to be. What was seen is compared now, and what comes later as it comes.
    pub(crate) fn expect(&self, expected: Vec<Crc32c>) {
        let chunks = self.chunks();
        let is_like =
            |(seen, expected): (&Option<Crc32c>, &Crc32c)| seen.is_none_or(|seen| seen == *expected);
        if chunks.len() != expected.len() || !chunks.iter().zip(&expected).all(is_like) {
            self.is_wrong.store(true, Ordering::Release);
        }
        // Under the lock, so that what comes is compared by one of both; and last, so that nothing wrong is confirmed.
        let _ = self.expected.set(expected);
        drop(chunks);
        self.changed.notify_waiters();
    }

    /// Says that its bytes turned out to be wrong.
    pub(crate) fn discard(&self, why: Arc<str>) {
        let _ = self.discarded.set(why);
        self.changed.notify_waiters();
    }

    /// Checksum of a chunk that was seen.
    pub(crate) fn of(&self, chunk: u32) -> Option<Crc32c> {
        self.chunks()[chunk as usize]
    }

    /// Checksums of all chunks, once all were seen.
    pub(crate) fn all(&self) -> Option<Vec<Crc32c>> {
        self.chunks().iter().copied().collect()
    }

    pub(crate) fn trust(&self) -> Trust {
        // First, because what is confirmed was compared before that.
        let is_confirmed = self.expected.get().is_some();
        match self.discarded.get() {
            Some(why) => Trust::Wrong(Arc::clone(why)),
            None if self.is_wrong.load(Ordering::Acquire) => Trust::Wrong(DAMAGED.into()),
            None if is_confirmed => Trust::Verified,
            None => Trust::Provisional,
        }
    }
}

/// Waits until a blob is confirmed, and compares what was handed out with what was confirmed: a chunk may have been damaged on
/// its way, and fetched again since. `None` when nobody wants to know any more.
pub(crate) async fn confirm(seen: &Weak<Seen>, blob: BlobKey, store: &Store) -> Option<()> {
    loop {
        match confirmed(store, blob).await {
            Ok(Some(expected)) => {
                seen.upgrade()?.expect(expected);
                return Some(());
            }
            Ok(None) => {}
            Err(error) => tracing::debug!(%blob, %error, "not confirmed yet"),
        }
        // Nobody says when a blob is confirmed.
        sleep(LOOK).await;
        seen.upgrade()?;
    }
}

/// Waits until all of a blob was seen. Gives the checksums of its chunks.
pub(crate) async fn whole(seen: &Weak<Seen>) -> Option<Vec<Crc32c>> {
    loop {
        match seen.upgrade()?.all() {
            Some(chunks) => return Some(chunks),
            None => sleep(LOOK).await,
        }
    }
}

/// Checksums of a blob's chunks, once it is what the origin has.
async fn confirmed(store: &Store, blob: BlobKey) -> Result<Option<Vec<Crc32c>>, StoreError> {
    Ok(store.stored_blob(blob).await?.map(|stored| stored.manifest().chunk_crc32c.clone()))
}
