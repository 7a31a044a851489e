//! Detached prefetches: the agent itself waits for them, across restarts.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weightd_fetch::{FetchError, Transfer};
use weightd_store::{Job, Store, StoreError};
use weightd_types::{Layout, SnapshotKey};

use crate::Control;

/// Wait before a failed job is tried again; doubles up to the limit. The fetch room has retried each request by
/// then, so the origin is down for longer.
const PAUSE: Duration = Duration::from_secs(5);
const PAUSE_LIMIT: Duration = Duration::from_secs(300);

/// The detached prefetches under way.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    running: Mutex<HashMap<SnapshotKey, Running>>,
}

/// How to end one.
#[derive(Debug)]
struct Running {
    cancelled: CancellationToken,
    tasks: TaskTracker,
}

impl Jobs {
    fn lock(&self) -> MutexGuard<'_, HashMap<SnapshotKey, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the job down, and goes on with its transfer. Durable when it returns.
    pub(crate) async fn begin(
        &self,
        control: &Control,
        job: Job,
        transfer: Arc<Transfer>,
    ) -> Result<(), StoreError> {
        let key = transfer.key();
        control.store().set_job(key, Some(job.clone())).await?;
        self.run(control, key, job, Some(transfer));
        Ok(())
    }

    /// Ends a job, and waits until it has let go of its snapshot.
    pub(crate) async fn give_up(&self, store: &Store, key: SnapshotKey) -> Result<(), StoreError> {
        let running = self.lock().remove(&key);
        let Some(Running { cancelled, tasks }) = running else { return Ok(()) };
        cancelled.cancel();
        tasks.wait().await;
        store.set_job(key, None).await
    }

    fn run(&self, control: &Control, key: SnapshotKey, job: Job, transfer: Option<Arc<Transfer>>) {
        let mut running = self.lock();
        if running.contains_key(&key) {
            return;
        }
        let (cancelled, tasks) = (control.stopping.child_token(), TaskTracker::new());
        // What an operator asked for is fetched as the node.
        let lease = control.access.operator(&job.source);
        let carried = carry(control.clone(), cancelled.clone(), key, job, transfer);
        let carried = async move {
            carried.await;
            drop(lease);
        };
        control.tasks.spawn(tasks.track_future(carried));
        tasks.close();
        running.insert(key, Running { cancelled, tasks });
    }
}

impl Control {
    /// Goes on with the detached prefetches of an earlier run.
    ///
    /// # Errors
    /// When the store cannot tell what they are.
    pub async fn resume(&self) -> Result<(), StoreError> {
        for (key, job) in self.store().jobs().await? {
            tracing::info!(snapshot = %key, source = %job.source, "going on with a detached prefetch");
            self.jobs.run(self, key, job, None);
        }
        Ok(())
    }
}

/// Brings a job to its end, however often its origin fails meanwhile.
async fn carry(
    control: Control,
    cancelled: CancellationToken,
    key: SnapshotKey,
    job: Job,
    mut transfer: Option<Arc<Transfer>>,
) {
    let mut pause = PAUSE;
    loop {
        let attempt = attempt(&control, key.layout, &job, transfer.take());
        let outcome = tokio::select! {
            () = cancelled.cancelled() => return,
            outcome = attempt => outcome,
        };
        match outcome {
            Err(error) if error.is_retryable() => {
                tracing::warn!(source = %job.source, %error, "a detached prefetch failed and is tried again");
            }
            Err(error) => {
                tracing::error!(source = %job.source, %error, "a detached prefetch failed for good");
                break;
            }
            Ok(()) => break,
        }
        tokio::select! {
            () = cancelled.cancelled() => return,
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(PAUSE_LIMIT),
        }
    }
    control.jobs.lock().remove(&key);
    if let Err(error) = control.store().set_job(key, None).await {
        tracing::warn!(%error, "a detached prefetch ended and could not be crossed off; it is looked at again after a restart");
    }
}

/// One try. After a restart or a failure the source is resolved anew: it may have another snapshot by now.
async fn attempt(
    control: &Control,
    layout: Layout,
    job: &Job,
    transfer: Option<Arc<Transfer>>,
) -> Result<(), FetchError> {
    let transfer = match transfer {
        Some(transfer) => transfer,
        None => {
            let resolution = control.fetcher.resolve(&job.source, &job.selection).await?;
            control.fetcher.prefetch(resolution, layout, job.priority)
        }
    };
    let completed = transfer.wait().await?;
    if job.pin {
        control.store().set_pinned(completed.snapshot.key(), true).await?;
    }
    Ok(())
}
