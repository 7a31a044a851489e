//! `Prefetch`: a transfer as its client sees it.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use tokio::{sync::mpsc, time::MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use weightd_access::Lease;
use weightd_fetch::{Completed, FileProgress, Transfer};
use weightd_proto::v1::{self, prefetch_event::Event};
use weightd_store::{Job, StoreError};
use weightd_types::{Checksums, SnapshotKey};

use crate::{
    Control, failure, info,
    service::{Answers, wanted},
};

/// Time between two reports; snapshots with very many files are reported less often.
const INTERVAL: Duration = Duration::from_millis(250);
const INTERVAL_OF_MANY: Duration = Duration::from_secs(1);
const MANY_FILES: usize = 5_000;

/// Files named in one report. The rest follow in the next, so that no report is long.
const FILES_PER_REPORT: usize = 1_000;

/// Events that wait for a slow client.
const QUEUE: usize = 8;

type Sender = mpsc::Sender<Result<v1::PrefetchEvent, Status>>;

/// Resolves the source, and starts or joins the transfer.
pub(crate) async fn start(
    control: &Control,
    request: v1::PrefetchRequest,
) -> Result<Answers<v1::PrefetchEvent>, Status> {
    let (uri, selection) = wanted(&request.source, request.selection.clone())?;
    let layout = info::wanted_layout(request.layout());
    let lease = control.access.operator(&uri);
    let resolution =
        control.fetcher.resolve(&uri, &selection).await.map_err(|error| failure::fetch_status(&error))?;
    let job = Job { source: uri, selection, priority: request.priority, pin: request.pin };
    let transfer = control.fetcher.prefetch(resolution, layout, request.priority);
    let resolved = resolved(control, &transfer).await.map_err(|error| failure::store_status(&error))?;
    let (events, received) = mpsc::channel(QUEUE);
    // The queue is empty and has room: this cannot fail.
    let _ = events.try_send(Ok(event(Event::Resolved(resolved))));
    if request.detach {
        detach(control, job, transfer, &events).await.map_err(|error| failure::store_status(&error))?;
    } else {
        let watch = Watch { control: control.clone(), transfer, pin: request.pin, events, _lease: lease };
        control.tasks.spawn(watch.run());
    }
    Ok(ReceiverStream::new(received).boxed())
}

/// Answers only when the snapshot is written down beside the job: `List` shows it from then on, and an agent that is
/// killed goes on with it.
async fn detach(
    control: &Control,
    job: Job,
    transfer: Arc<Transfer>,
    events: &Sender,
) -> Result<(), StoreError> {
    let snapshot_id = transfer.key().id.to_string();
    let _hold = control.store().expect(transfer.manifest().as_ref().clone()).await?;
    control.jobs.begin(control, job, transfer).await?;
    let _ = events.try_send(Ok(event(Event::Detached(v1::Detached { snapshot_id }))));
    Ok(())
}

async fn resolved(control: &Control, transfer: &Transfer) -> Result<v1::Resolved, StoreError> {
    let manifest = transfer.manifest();
    let complete = control.store().snapshot(&transfer.key()).is_some_and(|record| record.complete);
    let present: u64 = match complete {
        true => manifest.size(),
        false => control.store().presence(Arc::clone(manifest)).await?.iter().map(|(bytes, _)| bytes).sum(),
    };
    Ok(v1::Resolved {
        snapshot_id: manifest.id.to_string(),
        source: manifest.source.to_string(),
        object_count: count(manifest.objects.len()),
        total_bytes: manifest.size(),
        missing_bytes: manifest.size().saturating_sub(present),
    })
}

/// One client that waits for a transfer. Its waiting is what keeps the transfer going.
struct Watch {
    control: Control,
    transfer: Arc<Transfer>,
    pin: bool,
    events: Sender,
    /// It is fetched as the node, as long as its client waits.
    _lease: Lease,
}

impl Watch {
    async fn run(self) {
        let files = self.transfer.manifest().objects.len();
        let interval = if files > MANY_FILES { INTERVAL_OF_MANY } else { INTERVAL };
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + interval, interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut report = Report::new(files);
        let mut done = std::pin::pin!(self.transfer.wait());
        let last = loop {
            tokio::select! {
                () = self.events.closed() => return,
                () = self.control.stopping.cancelled() => break Err(failure::stopping_status()),
                outcome = &mut done => break match outcome {
                    Ok(completed) => {
                        // Short transfers end between two reports; their files were verified all the same.
                        self.report_rest(&mut report).await;
                        complete(&self.control, self.transfer.key(), &completed, self.pin).await
                    }
                    Err(error) => Err(failure::fetch_status(&error)),
                },
                _ = ticks.tick() => {
                    let progress = report.next(&self.transfer, &self.transfer.progress());
                    // A client that does not keep up misses reports, and holds up nobody.
                    if let Ok(slot) = self.events.try_reserve() {
                        slot.send(Ok(event(Event::Progress(progress))));
                    }
                }
            }
        };
        let _ = self.events.send(last).await;
    }

    async fn report_rest(&self, report: &mut Report) {
        // Asked for once: it is as long as the snapshot, and there may be a hundred reports.
        let files = self.transfer.progress();
        loop {
            let progress = report.next(&self.transfer, &files);
            let is_rest = progress.files.len() < FILES_PER_REPORT;
            if progress.files.is_empty()
                || self.events.send(Ok(event(Event::Progress(progress)))).await.is_err()
                || is_rest
            {
                return;
            }
        }
    }
}

/// What was reported of each file, to report what changed.
struct Report {
    said: Vec<(u64, bool)>,
}

impl Report {
    fn new(files: usize) -> Self {
        Self { said: vec![(0, false); files] }
    }

    fn next(&mut self, transfer: &Transfer, files: &[FileProgress]) -> v1::Progress {
        let manifest = transfer.manifest();
        v1::Progress {
            done_bytes: files.iter().map(|file| file.present).sum(),
            total_bytes: manifest.size(),
            rate_bytes: transfer.rate_bytes(),
            verified_files: count(files.iter().filter(|file| file.verified).count()),
            total_files: count(files.len()),
            files: self.changed(files),
        }
    }

    fn changed(&mut self, files: &[FileProgress]) -> Vec<v1::FileProgress> {
        let mut changed = Vec::new();
        for (said, file) in self.said.iter_mut().zip(files) {
            let now = (file.present, file.verified);
            if *said != now && changed.len() < FILES_PER_REPORT {
                *said = now;
                changed.push(v1::FileProgress {
                    path: file.path.to_string(),
                    done_bytes: file.present,
                    total_bytes: file.total,
                    verified: file.verified,
                });
            }
        }
        changed
    }
}

/// The last event of a transfer that succeeded.
async fn complete(
    control: &Control,
    key: SnapshotKey,
    completed: &Completed,
    pin: bool,
) -> Result<v1::PrefetchEvent, Status> {
    let pinned = async {
        if pin {
            control.store().set_pinned(key, true).await?;
        }
        let record = control.store().snapshot(&key);
        control.describe(record.as_ref().unwrap_or(&completed.snapshot)).await
    };
    let objects = &completed.snapshot.manifest.objects;
    let unverifiable = objects.iter().filter(|entry| entry.object.checksums == Checksums::default()).count();
    let snapshot = pinned.await.map_err(|error| failure::store_status(&error))?;
    Ok(event(Event::Completed(v1::Completed {
        snapshot: Some(snapshot),
        fetched_bytes: completed.fetched_bytes,
        reused_bytes: completed.reused_bytes,
        elapsed_seconds: completed.elapsed.as_secs_f64(),
        unverifiable_objects: count(unverifiable),
    })))
}

fn event(event: Event) -> v1::PrefetchEvent {
    v1::PrefetchEvent { event: Some(event) }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
