//! Detached prefetches: the agent itself waits for them, across restarts.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::sync::{Mutex, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weightd_fetch::{FetchError, Transfer};
use weightd_store::{Job, SnapshotUse, Store, StoreError};
use weightd_types::SnapshotKey;

use crate::Control;

/// Wait before a failed job is tried again; doubles up to the limit. The fetch room has retried each request by
/// then, so the origin is down for longer.
const PAUSE: Duration = Duration::from_secs(5);
const PAUSE_LIMIT: Duration = Duration::from_secs(300);

/// The detached prefetches under way.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    /// Held while what is written down of a job changes too, so that it and the task that does it never differ: a job
    /// that is asked for while an earlier one ends must not be crossed off with it.
    running: Mutex<HashMap<SnapshotKey, Running>>,
}

/// One that a task carries.
#[derive(Debug)]
struct Running {
    /// What is written down. Whoever asks for the same snapshot again changes it.
    asked: watch::Sender<Job>,
    cancelled: CancellationToken,
    tasks: TaskTracker,
}

impl Jobs {
    /// Writes the job down, and goes on with its transfer. A job of the same snapshot that is under way becomes this one:
    /// its transfer goes on, and what is different holds from its next attempt or for its end. Durable when it returns.
    pub(crate) async fn begin(
        &self,
        control: &Control,
        mut job: Job,
        transfer: Arc<Transfer>,
    ) -> Result<(), StoreError> {
        let key = transfer.key();
        let mut running = self.running.lock().await;
        if let Some(known) = running.get(&key) {
            // Who asks without a pin does not take back what someone else was promised.
            job.pin |= known.asked.borrow().pin;
        }
        control.store().set_job(key, Some(job.clone())).await?;
        match running.get(&key) {
            Some(known) => drop(known.asked.send_replace(job)),
            None => drop(running.insert(key, run(control, key, job, Some(transfer)))),
        }
        Ok(())
    }

    /// Goes on with what an earlier run wrote down.
    async fn resume(&self, control: &Control) -> Result<(), StoreError> {
        let mut running = self.running.lock().await;
        for (key, job) in control.store().jobs().await? {
            tracing::info!(snapshot = %key, source = %job.source, "going on with a detached prefetch");
            running.entry(key).or_insert_with(|| run(control, key, job, None));
        }
        Ok(())
    }

    /// Ends a job, and waits until it has let go of its snapshot.
    pub(crate) async fn give_up(&self, store: &Store, key: SnapshotKey) -> Result<(), StoreError> {
        let mut running = self.running.lock().await;
        if let Some(Running { cancelled, tasks, .. }) = running.remove(&key) {
            // The task never waits for the lock without listening for this.
            cancelled.cancel();
            tasks.wait().await;
        }
        // Also where nothing runs: an earlier call may have broken off here, and a job that is written down comes back.
        store.set_job(key, None).await
    }
}

/// Starts the task of a job.
fn run(control: &Control, key: SnapshotKey, job: Job, transfer: Option<Arc<Transfer>>) -> Running {
    let (cancelled, tasks) = (control.stopping.child_token(), TaskTracker::new());
    // What an operator asked for is fetched as the node.
    let lease = control.access.operator(&job.source);
    let (asked, heard) = watch::channel(job);
    let carrier = Carrier { control: control.clone(), key, asked: heard, cancelled: cancelled.clone() };
    let carried = async move {
        carrier.carry(transfer).await;
        drop(lease);
    };
    control.tasks.spawn(tasks.track_future(carried));
    tasks.close();
    Running { asked, cancelled, tasks }
}

impl Control {
    /// Goes on with the detached prefetches of an earlier run, and with what was wanted on this node.
    ///
    /// # Errors
    /// When the store cannot tell what they are.
    pub async fn resume(&self) -> Result<(), StoreError> {
        self.jobs.resume(self).await?;
        self.wishes.resume(self).await
    }
}

/// Does one job.
struct Carrier {
    control: Control,
    key: SnapshotKey,
    asked: watch::Receiver<Job>,
    cancelled: CancellationToken,
}

impl Carrier {
    /// Brings the job to its end, however often its origin fails meanwhile.
    async fn carry(mut self, mut transfer: Option<Arc<Transfer>>) {
        let mut pause = PAUSE;
        loop {
            let job = self.asked.borrow_and_update().clone();
            let attempt = self.attempt(&job, transfer.take());
            let Some(outcome) = self.cancelled.run_until_cancelled(attempt).await else { return };
            if self.is_over(outcome).await {
                return;
            }
            tokio::select! {
                () = self.cancelled.cancelled() => return,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(PAUSE_LIMIT),
                // Someone asks again, and need not wait for what failed before.
                Ok(()) = self.asked.changed() => pause = PAUSE,
            }
        }
    }

    /// One try; gives what it brought, which nothing evicts as long as that is held. After a restart or a failure the
    /// source is resolved anew: it may have another snapshot by now.
    async fn attempt(
        &self,
        job: &Job,
        transfer: Option<Arc<Transfer>>,
    ) -> Result<(SnapshotKey, SnapshotUse), FetchError> {
        let transfer = match transfer {
            Some(transfer) => transfer,
            None => {
                let fetcher = &self.control.fetcher;
                let resolution = fetcher.resolve(&job.source, &job.selection).await?;
                fetcher.prefetch(resolution, self.key.layout, job.priority)
            }
        };
        let hold = self.control.store().expect(transfer.manifest().as_ref().clone()).await?;
        Ok((transfer.wait().await?.snapshot.key(), hold))
    }

    /// Ends the job if an attempt was the last. What is asked for by now counts, not what was when it began.
    async fn is_over(&self, outcome: Result<(SnapshotKey, SnapshotUse), FetchError>) -> bool {
        let (jobs, store) = (&self.control.jobs, self.control.store());
        let locked = self.cancelled.run_until_cancelled(jobs.running.lock()).await;
        // One that was given up has no say: what is written down may be a later job's by now.
        let Some(mut running) = locked.filter(|_| !self.cancelled.is_cancelled()) else { return true };
        let Some(job) = running.get(&self.key).map(|known| known.asked.borrow().clone()) else { return true };
        let source = &job.source;
        match outcome {
            // Whoever asked meanwhile, if for the same, asked for an attempt that began after.
            Err(error) if error.is_retryable() || self.asked.has_changed().unwrap_or(false) => {
                tracing::warn!(%source, %error, "a detached prefetch failed and is tried again");
                return false;
            }
            Err(error) => tracing::error!(%source, %error, "a detached prefetch failed for good"),
            Ok((brought, _hold)) if job.pin => {
                if let Err(error) = store.set_pinned(brought, true).await {
                    tracing::warn!(%source, %error, "what a detached prefetch brought could not be pinned; that is tried again");
                    return false;
                }
            }
            Ok(_) => {}
        }
        if let Err(error) = store.set_job(self.key, None).await {
            tracing::warn!(%error, "a detached prefetch ended and could not be crossed off; it is looked at again after a restart");
        }
        running.remove(&self.key);
        true
    }
}

#[cfg(test)]
mod tests {
    use weightd_types::{Layout, Selection};

    use super::*;
    use crate::tests::Fixture;

    #[tokio::test(flavor = "multi_thread")]
    async fn who_gives_up_again_ends_what_an_earlier_call_left_written_down() {
        let fixture = Fixture::new().await;
        let (jobs, store) = (&fixture.control.jobs, fixture.control.store());
        let key = SnapshotKey { id: "0".repeat(64).parse().unwrap(), layout: Layout::Original };
        let job = Job {
            source: "memory://m/model".parse().unwrap(),
            selection: Selection::default(),
            priority: 0,
            pin: true,
        };
        store.set_job(key, Some(job)).await.unwrap();
        jobs.give_up(store, key).await.unwrap();
        assert!(store.jobs().await.unwrap().is_empty(), "it would come back with the next agent");
    }
}
