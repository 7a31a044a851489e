//! Who is at work in the store, so that closing it can wait for them.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::StoreError;

/// More than are ever at work at once.
const EVERYONE: u32 = 1 << 28;

/// Lets work in until the store is closed.
#[derive(Debug, Clone)]
pub(crate) struct Gate(Arc<Semaphore>);

/// Held while someone is at work.
pub(crate) type Pass = OwnedSemaphorePermit;

impl Gate {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(EVERYONE as usize)))
    }

    /// One more is at work.
    pub(crate) fn enter(&self) -> Result<Pass, StoreError> {
        // None is left from the moment on in which someone waits for all of them.
        Arc::clone(&self.0).try_acquire_owned().map_err(|_| StoreError::Closed)
    }

    /// Lets nobody in any more, and waits for those who are. `None` when it is shut already.
    pub(crate) async fn clear(&self) -> Option<Pass> {
        Arc::clone(&self.0).acquire_many_owned(EVERYONE).await.ok()
    }

    /// Stays shut.
    pub(crate) fn shut(&self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn closing_waits_for_those_who_are_in_and_lets_nobody_else_in() {
        let gate = Gate::new();
        let at_work = gate.enter().unwrap();
        let clear = async || timeout(Duration::from_secs(1), gate.clear()).await;
        assert!(clear().await.is_err(), "someone is at work");
        let other = gate.enter().expect("a closing that was given up closes nothing");
        let (waiting, ()) = tokio::join!(clear(), async {
            assert!(matches!(gate.enter(), Err(StoreError::Closed)));
            drop((at_work, other));
        });
        let everyone = waiting.unwrap().unwrap();
        gate.shut();
        drop(everyone);
        assert!(matches!(gate.enter(), Err(StoreError::Closed)));
        assert!(clear().await.unwrap().is_none(), "closing twice is closing once");
    }
}
