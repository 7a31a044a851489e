//! Models that are brought into memory before anyone asks for them: a server that starts meanwhile finds them there.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::{CancellationToken, DropGuard};
use weightd_types::SnapshotKey;

use super::{Inner, counted::Counted, lease::Lease, model::Model, refusal::Refusal};

/// Models on their way into memory.
#[derive(Debug)]
pub(crate) struct Ahead {
    inner: Arc<Inner>,
    running: Mutex<HashMap<SnapshotKey, DropGuard>>,
}

impl Ahead {
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        Self { inner, running: Mutex::default() }
    }

    fn running(&self) -> MutexGuard<'_, HashMap<SnapshotKey, DropGuard>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings a model into memory, where it then lies as if its last lease had just ended. Needs a tokio runtime.
    pub(crate) fn want(self: &Arc<Self>, key: SnapshotKey) {
        let token = CancellationToken::new();
        // Ends what was begun before; what that brought is there, and is not brought again.
        drop(self.running().insert(key, token.clone().drop_guard()));
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let _counted = Counted::one_more(&this.inner.residents.ahead);
            let pressed = this.inner.residents.pressed.notified();
            let ended = tokio::select! {
                () = token.cancelled() => return,
                () = pressed => Err(Refusal::memory("its memory is needed for one that was asked for")),
                ended = fill(&this.inner, key) => ended,
            };
            match ended {
                Ok(()) => tracing::info!(snapshot = %key, "a model is in memory"),
                Err(refusal) => {
                    let why = refusal.message;
                    tracing::warn!(snapshot = %key, why, "a model does not come into memory before it is asked for");
                }
            }
            // Unless someone else has begun anew.
            let mut running = this.running();
            if !token.is_cancelled() {
                running.remove(&key);
            }
        });
    }

    /// Goes on with these and no others.
    pub(crate) fn keep_only(&self, is_shown: impl Fn(&SnapshotKey) -> bool) {
        self.running().retain(|key, _| is_shown(key));
    }

    /// Ends all of it.
    pub(crate) fn end(&self) {
        self.running().clear();
    }
}

async fn fill(inner: &Arc<Inner>, key: SnapshotKey) -> Result<(), Refusal> {
    let model = Model::of_snapshot(Arc::clone(inner), key, &[]).await?;
    let wanted_only = false;
    Lease::open(model, wanted_only).await?.fill().await
}
