//! Puts what arrives where it belongs, in the order of the disk, and sees that it is what the origin has.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{sync::watch, task::spawn_blocking};
use weightd_fetch::{FetchError, Line, Mismatch, ObjectSum};
use weightd_store::io::{Buffer, BufferPool};
use weightd_types::{ByteRange, Crc32c};

use crate::{
    ImageError, Progress,
    arrival::{Arrived, Place, Span, to_usize},
    contents::{Blob, Contents},
    disk::{BLOCK_BYTES, Content, Disk},
    finished,
    output::{Begin, Partial, Record, Sink, SinkState},
    steps::Ask,
};

/// How much time's worth of work a crash may cost.
const CHECKPOINT: Duration = Duration::from_secs(2);
/// Memory for late pieces that wait for their turn; more are fetched again when it comes.
const LATE_BYTES: u64 = 64 << 20;
/// Buffers for what is not fetched in chunks.
const OWN_BUFFERS: usize = 3;

/// What has been done of a disk.
pub(crate) struct Writer<'w> {
    disk: &'w Disk,
    contents: Arc<Contents>,
    line: Arc<Line>,
    sink: Sink,
    partial: Option<&'w Partial>,
    plan: String,
    /// By blob, the checksums of its pieces so far.
    pieces: Vec<Vec<Crc32c>>,
    /// Memory of its own: requests that wait for their turn may hold all other.
    pool: BufferPool,
    /// Data that lie side by side, up to a chunk, not given to the sink yet.
    gathered: Option<(u64, Buffer)>,
    blob: Option<UnderWay>,
    /// Where the blob begins in whose middle a run goes on.
    begin: Option<Begin>,
    /// Steps that are done.
    step: usize,
    checkpointed: Instant,
    progress: &'w watch::Sender<Progress>,
}

/// The blob that is being written.
struct UnderWay {
    sum: Option<ObjectSum>,
    /// Late pieces whose turn has not come, by where they lie in the blob, and their bytes if there is room for them.
    late: BTreeMap<u64, (usize, Option<Bytes>)>,
    late_bytes: u64,
    /// What a later run goes on from if the blob turns out to be wrong; `None` where nobody can go on.
    begin: Option<Begin>,
}

/// What a writer works with.
pub(crate) struct Means<'w> {
    pub(crate) disk: &'w Disk,
    pub(crate) contents: Arc<Contents>,
    pub(crate) line: Arc<Line>,
    pub(crate) sink: Sink,
    pub(crate) partial: Option<&'w Partial>,
    pub(crate) plan: String,
    pub(crate) progress: &'w watch::Sender<Progress>,
}

impl<'w> Writer<'w> {
    /// Begins, or goes on where a record says.
    pub(crate) fn new(means: Means<'w>, record: Option<&Record>) -> Result<Self, ImageError> {
        let Means { disk, contents, line, sink, partial, plan, progress } = means;
        let pool = BufferPool::new(OWN_BUFFERS).map_err(ImageError::io("get memory for", "the image"))?;
        let pieces =
            record.map_or_else(|| vec![Vec::new(); contents.blobs.len()], |record| record.pieces.clone());
        let (step, checkpointed) = (record.map_or(0, |record| record.step), Instant::now());
        let begin = record.and_then(|record| record.begin.clone());
        Ok(Self {
            disk,
            contents,
            line,
            sink,
            partial,
            plan,
            pieces,
            pool,
            gathered: None,
            blob: None,
            begin,
            step,
            checkpointed,
            progress,
        })
    }

    /// Writes a range of what ext4 needs.
    pub(crate) async fn metadata(&mut self, range: ByteRange) -> Result<(), ImageError> {
        let mut at = range.start;
        while at < range.end {
            let len = (range.end - at).min(Buffer::CAPACITY as u64);
            let bytes = self.disk.metadata.read(ByteRange::at(at, len));
            let bytes = bytes.map_err(ImageError::io("read metadata of", "the image"))?;
            self.gather(at, &bytes).await?;
            at += len;
        }
        self.done().await
    }

    /// Writes a file whose bytes are known by now.
    pub(crate) async fn file(&mut self, number: usize) -> Result<(), ImageError> {
        let file = &self.disk.files[number];
        let bytes: Bytes = match &file.content {
            Content::Known(bytes) => bytes.clone(),
            Content::Manifest(blob) => {
                finished::manifest(&self.contents.blobs[*blob], &self.pieces[*blob]).into()
            }
            Content::Blob(_) => Bytes::new(),
        };
        self.gather(file.at, &bytes).await?;
        self.pad(file.at + file.bytes).await?;
        self.done().await
    }

    /// Writes what a request brought, and ends the blob with its last.
    pub(crate) async fn arrived(&mut self, arrived: Arrived) -> Result<(), ImageError> {
        let ask = arrived.ask.clone();
        let contents = Arc::clone(&self.contents);
        let blob = &contents.blobs[ask.blob];
        let start = self.disk.files[ask.file].at;
        if ask.is_first() {
            self.begin(&ask, blob, start).await?;
        }
        let mut under_way = self.blob.take().unwrap_or_else(|| self.resumed(&ask, blob));
        self.pieces[ask.blob].extend(arrived.pieces.iter().map(|piece| piece.crc));
        let arrived = sum(&mut under_way, blob, arrived).await?;
        self.keep_late(&mut under_way, blob, &arrived);
        let is_last = ask.pieces.end == blob.wanted.placement.pieces().len();
        let begin = under_way.begin.clone();
        match self.write(&mut under_way, blob, &ask, arrived.spans, is_last).await {
            Ok(()) if is_last => {}
            Ok(()) => self.blob = Some(under_way),
            Err(error @ ImageError::Fetch(FetchError::Corrupt { .. })) => {
                self.roll_back(begin, ask.blob).await?;
                return Err(error);
            }
            Err(error) => return Err(error),
        }
        self.done().await
    }

    async fn write(
        &mut self,
        under_way: &mut UnderWay,
        blob: &Blob,
        ask: &Ask,
        spans: Vec<Span>,
        is_last: bool,
    ) -> Result<(), ImageError> {
        let start = self.disk.files[ask.file].at;
        for span in spans {
            self.late(under_way, blob, start, span.at).await?;
            self.put(start + span.at, span.buffer).await?;
        }
        if is_last { self.end(under_way, ask, blob, start).await } else { Ok(()) }
    }

    /// Ends the disk, all of whose steps were taken. Gives the length of what was made.
    pub(crate) async fn finish(mut self, steps: usize) -> Result<u64, ImageError> {
        if self.step != steps {
            return Err(FetchError::Closed.into());
        }
        self.flush().await?;
        self.sink.finish().await
    }

    async fn begin(&mut self, ask: &Ask, blob: &Blob, start: u64) -> Result<(), ImageError> {
        self.flush().await?;
        let begin = self.sink.state().map(|sink| Begin { step: self.step, sink });
        self.pieces[ask.blob].clear();
        self.blob = Some(UnderWay {
            sum: ObjectSum::of(&blob.wanted.object),
            late: BTreeMap::new(),
            late_bytes: 0,
            begin,
        });
        if let Some(UnderWay { sum: Some(sum), .. }) = &mut self.blob {
            sum.update(&blob.wanted.header);
        }
        self.gather(start, blob.wanted.placement.literal()).await
    }

    /// A blob in the middle of which a run goes on: what was late then is fetched again. Sums in the order of the object go on
    /// from a blob's beginning only, so this one has none.
    fn resumed(&mut self, ask: &Ask, blob: &Blob) -> UnderWay {
        let late = crate::steps::late_pieces(&blob.wanted.placement);
        let pieces = blob.wanted.placement.pieces();
        let frontier = pieces[..ask.pieces.start].iter().zip(&late).filter(|(_, late)| !**late);
        let frontier = frontier.map(|(piece, _)| piece.blob).max().unwrap_or(0);
        let owed = (0..ask.pieces.start).filter(|&at| late[at] && pieces[at].blob > frontier);
        let late = owed.map(|at| (pieces[at].blob, (at, None))).collect();
        UnderWay { sum: None, late, late_bytes: 0, begin: self.begin.take() }
    }

    fn keep_late(&mut self, under_way: &mut UnderWay, blob: &Blob, arrived: &Arrived) {
        for (piece, at) in arrived.pieces.iter().zip(arrived.ask.pieces.clone()) {
            let Place::Late(bytes) = &piece.place else { continue };
            let fits = under_way.late_bytes + bytes.len() as u64 <= LATE_BYTES;
            under_way.late_bytes += if fits { bytes.len() as u64 } else { 0 };
            let place = blob.wanted.placement.pieces()[at].blob;
            under_way.late.insert(place, (at, fits.then(|| bytes.clone())));
        }
    }

    /// Writes late pieces that lie before a byte of the blob.
    async fn late(
        &mut self,
        under_way: &mut UnderWay,
        blob: &Blob,
        start: u64,
        before: u64,
    ) -> Result<(), ImageError> {
        while let Some(first) = under_way.late.first_entry().filter(|first| *first.key() < before) {
            let (place, (at, kept)) = first.remove_entry();
            let bytes = match kept {
                Some(bytes) => {
                    under_way.late_bytes -= bytes.len() as u64;
                    bytes
                }
                None => self.fetch_again(blob, at).await?,
            };
            self.gather(start + place, &bytes).await?;
        }
        Ok(())
    }

    /// Fetches a piece that was seen before, and had no room then.
    async fn fetch_again(&self, blob: &Blob, at: usize) -> Result<Bytes, ImageError> {
        let piece = blob.wanted.placement.pieces()[at];
        let bytes = self.line.read(&blob.route, piece.object).collect().await?;
        let number = self.contents.blobs.iter().position(|other| std::ptr::eq(other, blob));
        let expected = number.map(|number| self.pieces[number][at]);
        let found = Crc32c::of(&bytes);
        match expected {
            Some(expected) if expected != found => Err(corrupt(
                blob,
                Mismatch { expected: format!("crc32c {expected}"), found: format!("crc32c {found}") },
            )),
            _ => Ok(bytes),
        }
    }

    /// Compares a whole blob with what its origin says.
    async fn end(
        &mut self,
        under_way: &mut UnderWay,
        ask: &Ask,
        blob: &Blob,
        start: u64,
    ) -> Result<(), ImageError> {
        self.late(under_way, blob, start, u64::MAX).await?;
        self.pad(start + blob.bytes()).await?;
        let crc32c = finished::object_checksum(blob, &self.pieces[ask.blob]);
        let mismatch = match under_way.sum.take() {
            Some(sum) => sum.compare(),
            None => Mismatch::of_crc32c(&blob.wanted.object, crc32c),
        };
        mismatch.map_or(Ok(()), |mismatch| Err(corrupt(blob, mismatch)))
    }

    /// Has the next run go on from where a blob begins that turned out to be wrong.
    async fn roll_back(&mut self, begin: Option<Begin>, blob: usize) -> Result<(), ImageError> {
        let Some(partial) = self.partial else { return Ok(()) };
        // Nothing may be written any more when the next run opens the file.
        self.sink.sync().await?;
        match begin {
            Some(Begin { step, sink }) => {
                self.pieces[blob].clear();
                partial.write_record(self.record(step, sink, None))
            }
            None => partial.start_afresh(),
        }
    }

    /// Takes bytes that are not in a buffer of their own.
    async fn gather(&mut self, at: u64, mut bytes: &[u8]) -> Result<(), ImageError> {
        let mut at = at;
        while !bytes.is_empty() {
            let continues = |(start, buffer): &(u64, Buffer)| {
                start + buffer.len() as u64 == at && buffer.len() < Buffer::CAPACITY
            };
            if !self.gathered.as_ref().is_some_and(continues) {
                self.flush().await?;
                self.gathered = Some((at, self.pool.acquire().await));
            }
            let (_, buffer) = self.gathered.as_mut().expect("it was just put there");
            let taken = buffer.extend_from_slice(bytes);
            bytes = &bytes[taken..];
            at += taken as u64;
        }
        Ok(())
    }

    /// Fills the block that a file ends in with zeros.
    async fn pad(&mut self, end: u64) -> Result<(), ImageError> {
        let zeros = [0; to_usize(BLOCK_BYTES)];
        let missing = to_usize(end.next_multiple_of(BLOCK_BYTES) - end);
        self.gather(end, &zeros[..missing]).await
    }

    async fn put(&mut self, at: u64, buffer: Buffer) -> Result<(), ImageError> {
        self.flush().await?;
        self.report(buffer.len());
        self.sink.put(at, buffer).await
    }

    async fn flush(&mut self) -> Result<(), ImageError> {
        let Some((at, buffer)) = self.gathered.take() else { return Ok(()) };
        self.report(buffer.len());
        self.sink.put(at, buffer).await
    }

    fn report(&self, len: usize) {
        self.progress.send_modify(|progress| progress.done_bytes += len as u64);
    }

    /// A step is done; now and then that is written down.
    async fn done(&mut self) -> Result<(), ImageError> {
        self.step += 1;
        if self.partial.is_none() || self.checkpointed.elapsed() < CHECKPOINT {
            return Ok(());
        }
        self.checkpoint().await
    }

    fn record(&self, step: usize, sink: SinkState, begin: Option<Begin>) -> Record {
        Record { plan: self.plan.clone(), step, pieces: self.pieces.clone(), sink, begin, inode: 0 }
    }

    /// Makes what was done durable, and writes down how far that is. A blob that is summed in its order counts when it is whole.
    async fn checkpoint(&mut self) -> Result<(), ImageError> {
        let Some(partial) = self.partial else { return Ok(()) };
        self.flush().await?;
        let Some(state) = self.sink.state() else { return Ok(()) };
        let record = match &self.blob {
            Some(UnderWay { sum: Some(_), begin: Some(Begin { step, sink }), .. }) => {
                self.record(*step, sink.clone(), None)
            }
            Some(UnderWay { begin, .. }) => self.record(self.step, state, begin.clone()),
            None => self.record(self.step, state, None),
        };
        self.sink.sync().await?;
        partial.write_record(record)?;
        self.checkpointed = Instant::now();
        Ok(())
    }
}

/// Sums a request's bytes in the order of the object, where that is needed; on a thread of its own, because a sum takes longer than
/// one that serves the network may wait.
async fn sum(under_way: &mut UnderWay, blob: &Blob, arrived: Arrived) -> Result<Arrived, ImageError> {
    let Some(mut sum) = under_way.sum.take() else { return Ok(arrived) };
    let placement = Arc::clone(&blob.wanted.placement);
    let summing = spawn_blocking(move || {
        for (number, at) in arrived.ask.pieces.clone().enumerate() {
            sum.update(arrived.bytes(number, placement.pieces()[at].object.len()));
        }
        (sum, arrived)
    });
    let (sum, arrived) = summing.await.map_err(|_| FetchError::Closed)?;
    under_way.sum = Some(sum);
    Ok(arrived)
}

fn corrupt(blob: &Blob, Mismatch { expected, found }: Mismatch) -> ImageError {
    FetchError::Corrupt { url: blob.wanted.url.clone(), expected, found, attempts: 1 }.into()
}
