//! Who is at work in the store, so that closing it can wait for them.

use std::{io, sync::Arc};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    StoreError,
    io::{Buffer, IoEngine, IoFile},
};

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

/// Writes, and is at work until that has ended, also when the caller goes away: after the store was closed, nothing of
/// it may reach a file that the next one has open.
pub(crate) async fn write_to_the_end(
    engine: &Arc<dyn IoEngine>,
    file: &Arc<IoFile>,
    offset: u64,
    buffer: Arc<Buffer>,
    pass: Pass,
) -> io::Result<()> {
    let (engine, file) = (Arc::clone(engine), Arc::clone(file));
    let writing = tokio::spawn(async move {
        let _pass = pass;
        engine.write(&file, offset, buffer).await
    });
    writing.await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::io::{BufferPool, PwriteEngine};

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

    #[tokio::test]
    async fn closing_waits_for_a_write_whose_caller_went_away() {
        let (directory, pool, gate) =
            (tempfile::tempdir().unwrap(), BufferPool::new(4).unwrap(), Gate::new());
        let engine: Arc<dyn IoEngine> = Arc::new(PwriteEngine::new(directory.path()).unwrap());
        let file = engine.create(&directory.path().join("blob"), 8 << 20).unwrap();
        while let Some(mut buffer) = pool.try_acquire() {
            buffer.set_len(Buffer::CAPACITY);
            tokio::select! {
                biased;
                _ = write_to_the_end(&engine, &file, 0, Arc::new(buffer), gate.enter().unwrap()) => {}
                () = std::future::ready(()) => {}
            }
        }
        assert!(gate.clear().await.is_some());
        assert_eq!(pool.in_use(), 0);
    }
}
