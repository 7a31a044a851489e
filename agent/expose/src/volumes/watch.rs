//! Volumes are looked after: what becomes of their blobs, and whether they are still there.

use std::{sync::Weak, time::Duration};

use tokio::sync::broadcast::{Receiver, error::RecvError};
use weightd_store::Store;
use weightd_types::BlobKey;

use super::Inner;
use crate::ExposeError;

/// How often volumes are looked for that others unmounted.
const LOOK: Duration = Duration::from_secs(10);

/// What the store tells of its blobs.
pub(super) struct News {
    discarded: Receiver<BlobKey>,
    replaced: Receiver<BlobKey>,
}

/// One thing to look after.
enum Change {
    /// Bytes of a blob were wrong; of which is not known when too many were at once.
    Discarded(Option<BlobKey>),
    /// A blob is fetched anew; likewise.
    Replaced(Option<BlobKey>),
    /// It is time to look for volumes that others unmounted.
    Tick,
}

impl News {
    pub(super) fn of(store: &Store) -> Self {
        Self { discarded: store.discarded(), replaced: store.replaced() }
    }
}

/// The next blob of a kind; `None` when the store is gone.
async fn next(receiver: &mut Receiver<BlobKey>) -> Option<Option<BlobKey>> {
    match receiver.recv().await {
        Ok(blob) => Some(Some(blob)),
        Err(RecvError::Lagged(_)) => Some(None),
        Err(RecvError::Closed) => None,
    }
}

/// Looks after volumes as the store tells of their blobs, and now and then.
pub(super) async fn watch(inner: Weak<Inner>, mut news: News) {
    let mut ticks = tokio::time::interval(LOOK);
    loop {
        let change = tokio::select! {
            blob = next(&mut news.discarded) => blob.map(Change::Discarded),
            blob = next(&mut news.replaced) => blob.map(Change::Replaced),
            _ = ticks.tick() => Some(Change::Tick),
        };
        let (Some(change), Some(inner)) = (change, inner.upgrade()) else { return };
        let _changing = match change {
            Change::Tick => Some(inner.changing.lock().await),
            // The kernel may make a caller wait who tells it to forget something.
            Change::Discarded(_) | Change::Replaced(_) => None,
        };
        if let Err(error) = inner.blocking(move |inner| inner.look_after(&change)).await {
            tracing::warn!(%error, "could not look after the volumes");
        }
    }
}

impl Inner {
    fn look_after(&self, change: &Change) -> Result<(), ExposeError> {
        match change {
            Change::Discarded(Some(blob)) => self.discarded(blob),
            Change::Discarded(None) => self.discarded_unseen(),
            Change::Replaced(Some(blob)) => self.shared.reader.chunks().close(blob),
            Change::Replaced(None) => self.shared.reader.chunks().close_all(),
            Change::Tick => return self.refresh().map(drop),
        }
        Ok(())
    }
}
