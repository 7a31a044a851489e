//! Building an image: decide where everything lies, then let the bytes stream from their sources to their places.

use std::{collections::HashMap, path::Path, sync::Arc, time::Instant};

use futures::future::BoxFuture;
use tokio::{
    sync::{mpsc, watch},
    time::Duration,
};
use tokio_util::task::AbortOnDropHandle;
use weightd_fetch::{FetchError, Line};
use weightd_source::Origins;
use weightd_store::io::BufferPool;
use weightd_types::{Digest, SnapshotKey, SourceUri};

use crate::{
    ImageError, Output,
    arrival::{self, Arrived},
    contents::{Contents, Model},
    disk::{self, Disk, Wish},
    output::{Partial, Sink},
    steps::{Step, late_pieces, steps},
    writer::{Means, Writer},
};

/// Memory for what arrives, in chunks: requests in flight, and writes.
const BUFFERS: usize = 24;
/// Most requests in flight, or waiting for their turn: a build that is killed loses what they had brought.
const IN_FLIGHT: usize = 16;
/// What is sold as room for a name by those who made ext4.
const MAX_LABEL_BYTES: usize = 16;

/// An image to build.
#[derive(Debug, Clone)]
pub struct Build {
    /// What it is to hold.
    pub models: Vec<Model>,
    /// Where it goes.
    pub output: Output,
    /// Length of the disk in bytes; as few whole GiB as suffice without one.
    pub size: Option<u64>,
    /// Name of the file system, up to 16 bytes.
    pub label: String,
    /// Seconds since 1970, of all times in the image. The same for the same image.
    pub time: u64,
}

/// How far a build is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the disk that were written.
    pub done_bytes: u64,
    /// All that there are to write; 0 until that is known.
    pub total_bytes: u64,
}

/// An image that was built.
#[derive(Debug, Clone)]
pub struct Built {
    /// Length of the disk in bytes.
    pub disk_bytes: u64,
    /// Length of what was made in bytes: of the disk's file, or of the archive.
    pub output_bytes: u64,
    /// Bytes that came from the sources.
    pub fetched_bytes: u64,
    /// What it holds.
    pub snapshots: Vec<BuiltSnapshot>,
    /// How long it took.
    pub elapsed: Duration,
}

/// One snapshot of an image.
#[derive(Debug, Clone)]
pub struct BuiltSnapshot {
    /// Where it comes from.
    pub source: SourceUri,
    /// Its key.
    pub key: SnapshotKey,
    /// Length of its objects in bytes.
    pub bytes: u64,
    /// Number of its objects.
    pub files: usize,
}

/// An image that is whole, and has not been given its name yet if it is a file.
#[derive(Debug)]
#[must_use = "a file has its name only when it is published"]
pub struct Draft {
    built: Built,
    partial: Option<Partial>,
}

impl Draft {
    /// Where it can be read; nowhere if it went to a bucket.
    pub fn file(&self) -> Option<&Path> {
        self.partial.as_ref().map(Partial::path)
    }

    /// Gives it its name, in the place of whatever has it. Durable when it returns.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn publish(self) -> Result<Built, ImageError> {
        if let Some(partial) = self.partial {
            partial.finish()?;
        }
        Ok(self.built)
    }

    /// Forgets it: the next build begins anew.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn discard(self) -> Result<(), ImageError> {
        self.partial.as_ref().map_or(Ok(()), Partial::start_afresh)
    }
}

/// Builds an image. A build that ended early goes on where it was, when it is asked for again.
///
/// # Errors
/// [`ImageError`]; what was written of a file stays, for the next run.
pub async fn build(
    wish: &Build,
    origins: Arc<Origins>,
    config: weightd_fetch::Config,
    progress: &watch::Sender<Progress>,
) -> Result<Draft, ImageError> {
    let started = Instant::now();
    check(wish)?;
    // First: whoever comes second should not list sources for nothing.
    let partial = match wish.output.file() {
        Some(path) => Some(Partial::lock(path)?),
        None => None,
    };
    let (in_flight, refetches) = (config.max_requests.min(IN_FLIGHT), config.refetches);
    let line = Arc::new(Line::new(config));
    let run = Run { wish, origins: &origins, line: &line, partial: partial.as_ref(), in_flight, progress };
    let mut wrong: HashMap<String, u32> = HashMap::new();
    let (contents, disk, output_bytes) = loop {
        let error = match run.write().await {
            Ok(written) => break written,
            Err(error) => error,
        };
        let ImageError::Fetch(FetchError::Corrupt { url, expected, found, .. }) = error else {
            return Err(error);
        };
        let times = wrong.entry(url.clone()).or_default();
        *times += 1;
        // What was uploaded cannot be taken back.
        if partial.is_none() || *times > refetches {
            return Err(FetchError::Corrupt { url, expected, found, attempts: *times }.into());
        }
        tracing::warn!(url, expected, found, "the object does not match its checksum; fetching it again");
    };
    let built = Built {
        disk_bytes: disk.bytes,
        output_bytes,
        fetched_bytes: line.metrics().fetched_bytes(),
        snapshots: contents.snapshots.iter().map(BuiltSnapshot::of).collect(),
        elapsed: started.elapsed(),
    };
    Ok(Draft { built, partial })
}

fn check(wish: &Build) -> Result<(), ImageError> {
    let refuse = |why: String| Err(ImageError::Usage(why));
    if wish.models.is_empty() {
        return refuse("an image needs at least one --model".to_owned());
    }
    if wish.label.len() > MAX_LABEL_BYTES || wish.label.chars().any(char::is_control) {
        return refuse(format!("--label {:?}: ext4 has room for 16 bytes of plain text", wish.label));
    }
    match wish.size {
        Some(size) if size == 0 || size % (1 << 30) != 0 => {
            refuse(format!("--size {size}: a cloud disk has whole GiB; write for instance 100GiB"))
        }
        _ => Ok(()),
    }
}

/// What a build works with.
struct Run<'r> {
    wish: &'r Build,
    origins: &'r Origins,
    line: &'r Arc<Line>,
    partial: Option<&'r Partial>,
    in_flight: usize,
    progress: &'r watch::Sender<Progress>,
}

impl Run<'_> {
    /// Decides where everything lies, and writes what an earlier run has not. Gives the length of what was made, too.
    async fn write(&self) -> Result<(Arc<Contents>, Disk, u64), ImageError> {
        let Self { wish, line, partial, .. } = *self;
        // Each time: what came with wrong bytes may have been a header.
        let contents = Contents::gather(line, self.origins, &wish.models, wish.time).await?;
        let contents = Arc::new(contents);
        let disk = disk::decide(&contents, &Wish { size: wish.size, label: &wish.label, time: wish.time })?;
        let plan = fingerprint(wish, &disk, &contents);
        let record = partial.and_then(|partial| partial.record(&plan));
        if let (Some(partial), None) = (partial, &record) {
            partial.start_afresh()?;
        }
        let pool = BufferPool::new(BUFFERS).map_err(ImageError::io("get memory for", wish.output.name()))?;
        let state = record.as_ref().map(|record| record.sink.clone());
        let sink = Sink::open(&wish.output, partial, &disk, &pool, state, self.origins).await?;
        let steps = steps(&disk, &contents);
        let first = record.as_ref().map_or(0, |record| record.step.min(steps.len()));
        self.progress.send_replace(Progress {
            done_bytes: written_by(&steps[..first], &disk, &contents),
            total_bytes: disk.data().iter().map(|range| range.len()).sum(),
        });
        let means = Means {
            disk: &disk,
            contents: Arc::clone(&contents),
            line: Arc::clone(line),
            sink,
            partial,
            plan,
            progress: self.progress,
        };
        let writer = Writer::new(means, record.as_ref())?;
        let output_bytes = write(writer, steps, first, &contents, line, pool, self.in_flight).await?;
        Ok((contents, disk, output_bytes))
    }
}

/// What a step needs before the writer takes it.
enum Coming {
    /// Nothing.
    Step(Step),
    /// What a request brings.
    Arrival(AbortOnDropHandle<Result<Arrived, FetchError>>),
}

/// Requests run ahead, the writer takes what they bring in its order.
async fn write(
    mut writer: Writer<'_>,
    steps: Vec<Step>,
    first: usize,
    contents: &Arc<Contents>,
    line: &Arc<Line>,
    pool: BufferPool,
    in_flight: usize,
) -> Result<u64, ImageError> {
    let count = steps.len();
    let steps = steps.into_iter().skip(first).collect();
    // One is waited for, and one waits to be sent.
    let (ahead, mut coming) = mpsc::channel(in_flight.saturating_sub(2).max(1));
    let asking: BoxFuture<'static, ()> =
        Box::pin(ask_ahead(steps, Arc::clone(contents), Arc::clone(line), pool, ahead));
    let _asking = AbortOnDropHandle::new(tokio::spawn(asking));
    while let Some(next) = coming.recv().await {
        match next {
            Coming::Step(Step::Metadata(range)) => writer.metadata(range).await?,
            Coming::Step(Step::File(number)) => writer.file(number).await?,
            Coming::Step(Step::Ask(_)) => {}
            Coming::Arrival(arrival) => {
                let arrived = arrival.await.map_err(|_| FetchError::Closed)??;
                writer.arrived(arrived).await?;
            }
        }
    }
    writer.finish(count).await
}

/// Sends requests as far ahead as there is memory for what they bring.
async fn ask_ahead(
    steps: Vec<Step>,
    contents: Arc<Contents>,
    line: Arc<Line>,
    pool: BufferPool,
    ahead: mpsc::Sender<Coming>,
) {
    let mut late: (usize, Arc<[bool]>) = (usize::MAX, Arc::new([]));
    for step in steps {
        let coming = match step {
            Step::Ask(ask) => {
                let blob = &contents.blobs[ask.blob];
                if late.0 != ask.blob {
                    late = (ask.blob, late_pieces(&blob.wanted.placement).into());
                }
                let buffers = arrival::buffers(&pool, blob, &late.1, &ask).await;
                let (contents, line, late) = (Arc::clone(&contents), Arc::clone(&line), Arc::clone(&late.1));
                let fetching = async move {
                    let blob = &contents.blobs[ask.blob];
                    arrival::fetch(&line, blob, &late, ask, buffers).await
                };
                Coming::Arrival(AbortOnDropHandle::new(tokio::spawn(fetching)))
            }
            other => Coming::Step(other),
        };
        if ahead.send(coming).await.is_err() {
            return;
        }
    }
}

/// Bytes of the disk that so many steps have written.
fn written_by(steps: &[Step], disk: &Disk, contents: &Contents) -> u64 {
    let bytes = |step: &Step| match step {
        Step::Metadata(range) => range.len(),
        Step::File(number) => disk.files[*number].bytes,
        Step::Ask(ask) => {
            let pieces = &contents.blobs[ask.blob].wanted.placement.pieces()[ask.pieces.clone()];
            pieces.iter().map(|piece| piece.object.len()).sum()
        }
    };
    steps.iter().map(bytes).sum()
}

/// A digest of everything that was decided.
fn fingerprint(wish: &Build, disk: &Disk, contents: &Contents) -> String {
    let mut text = format!(
        "weightd-image-1\n{}\n{:?}\n{}\n{}\n",
        env!("CARGO_PKG_VERSION"),
        wish.label,
        wish.time,
        disk.bytes
    );
    for manifest in &contents.snapshots {
        text += &format!("{}\n", manifest.key());
    }
    for blob in &contents.blobs {
        text += &format!("{}\n", Digest::of(&blob.wanted.header));
    }
    for file in &disk.files {
        text += &format!("{} {}\n", file.at, file.bytes);
    }
    let kind = match wish.output {
        Output::RawDisk(_) => "raw",
        Output::Archive(_) | Output::Bucket(_) => "archive",
    };
    Digest::of(text + kind).to_string()
}

impl BuiltSnapshot {
    pub(crate) fn of(manifest: &weightd_store::SnapshotManifest) -> Self {
        Self {
            source: manifest.source.clone(),
            key: manifest.key(),
            bytes: manifest.size(),
            files: manifest.objects.len(),
        }
    }
}
