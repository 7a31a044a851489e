//! An archive in a file.

use std::{
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{fs::FallocateFlags, io::Errno};
use tokio::task::{JoinSet, spawn_blocking};
use weightd_store::io::{Access, Buffer, BufferPool, EngineChoice, IoEngine, IoFile, open_engine};

use super::Partial;
use crate::{
    ImageError,
    archive::{EncodeError, Encoder, EncoderState, Out, Plan},
    arrival::to_usize,
};

/// Writes in flight: the disk has work while the next bytes are encoded.
const WRITES: usize = 6;
/// What a buffer of data can become at most: what was begun before, itself, and what frames it.
const AT_ONCE: usize = 3;

/// An archive that is being written, a whole buffer at a time past the page cache.
pub(crate) struct ArchiveFile {
    /// `None` while a thread has it, or after that failed.
    encoder: Option<Encoder>,
    /// The same.
    pages: Option<Pages>,
    engine: Arc<dyn IoEngine>,
    file: Arc<IoFile>,
    pool: BufferPool,
    path: PathBuf,
    /// Length of the whole.
    archive_bytes: u64,
    /// Where the buffer belongs that is being filled.
    at: u64,
    writes: JoinSet<io::Result<()>>,
}

/// What an encoder writes into.
struct Pages {
    full: Vec<Buffer>,
    filling: Buffer,
    /// For when that is full.
    spare: Vec<Buffer>,
}

impl Out for Pages {
    fn extend_from_slice(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let taken = self.filling.extend_from_slice(bytes);
            bytes = &bytes[taken..];
            if self.filling.len() == Buffer::CAPACITY {
                let next = self.spare.pop().expect("there is a buffer for all that can come at once");
                self.full.push(std::mem::replace(&mut self.filling, next));
            }
        }
    }
}

impl ArchiveFile {
    /// Begins, or goes on where an earlier run was.
    pub(super) async fn open(
        partial: &Partial,
        plan: Plan,
        state: Option<EncoderState>,
    ) -> Result<Self, ImageError> {
        let (path, archive_bytes) = (partial.path().to_owned(), plan.archive_bytes());
        let encoder = match state {
            Some(state) => Encoder::resume(plan, state).map_err(refused(&path))?,
            None => Encoder::new(plan),
        };
        let failed = |error| failed(&path, archive_bytes, error);
        let pool = BufferPool::new(WRITES + AT_ONCE + 1).map_err(failed)?;
        let made = encoder.state().archive_bytes;
        let at = made - made % Buffer::CAPACITY as u64;
        let mut filling = pool.acquire().await;
        let tail = to_usize(made - at);
        partial.file().read_exact_at(&mut filling.spare_mut()[..tail], at).map_err(failed)?;
        filling.set_len(tail);
        match rustix::fs::fallocate(partial.file(), FallocateFlags::empty(), 0, archive_bytes) {
            // Where no room can be promised, writing finds out.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(error) => return Err(failed(error.into())),
        }
        partial.file().set_len(archive_bytes).map_err(failed)?;
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new("."));
        let engine = open_engine(directory, &pool, EngineChoice::Auto).map_err(failed)?;
        let file = engine.open(&path, Access::Write).map_err(failed)?;
        let pages = Pages { full: Vec::new(), filling, spare: Vec::new() };
        Ok(Self {
            encoder: Some(encoder),
            pages: Some(pages),
            engine,
            file,
            pool,
            path,
            archive_bytes,
            at,
            writes: JoinSet::new(),
        })
    }

    pub(super) async fn put(&mut self, data: Buffer) -> Result<(), ImageError> {
        let (mut encoder, mut pages) = self.take().await?;
        let encoded = spawn_blocking(move || {
            let outcome = encoder.write(&data, &mut pages);
            (encoder, pages, outcome)
        });
        let (encoder, pages, outcome) =
            encoded.await.map_err(|error| self.failed(io::Error::other(error)))?;
        outcome.map_err(refused(&self.path))?;
        self.encoder = Some(encoder);
        self.write_full(pages);
        Ok(())
    }

    /// Where it is.
    pub(super) fn state(&self) -> EncoderState {
        self.encoder.as_ref().expect("nothing is asked after a failure").state()
    }

    /// Makes everything durable that was taken, what does not fill a buffer included.
    pub(super) async fn sync(&mut self) -> Result<(), ImageError> {
        let mut copy = self.buffer().await?;
        let Some(pages) = &self.pages else { return Err(self.failed_before()) };
        copy.extend_from_slice(&pages.filling);
        if !copy.is_empty() {
            self.write(self.at, copy);
        }
        while !self.writes.is_empty() {
            self.next_written().await?;
        }
        let (engine, file) = (Arc::clone(&self.engine), Arc::clone(&self.file));
        let synced = spawn_blocking(move || engine.sync(&file)).await;
        let synced = synced.unwrap_or_else(|error| Err(io::Error::other(error)));
        synced.map_err(|error| self.failed(error))
    }

    pub(super) async fn finish(mut self) -> Result<u64, ImageError> {
        let (encoder, mut pages) = self.take().await?;
        encoder.finish(&mut pages).map_err(refused(&self.path))?;
        self.write_full(pages);
        self.sync().await?;
        Ok(self.archive_bytes)
    }

    /// What is needed to encode some more: buffers for all that can come of it.
    async fn take(&mut self) -> Result<(Encoder, Pages), ImageError> {
        let taken = self.encoder.take().zip(self.pages.take());
        let Some((encoder, mut pages)) = taken else { return Err(self.failed_before()) };
        while pages.spare.len() < AT_ONCE {
            pages.spare.push(self.buffer().await?);
        }
        Ok((encoder, pages))
    }

    fn write_full(&mut self, mut pages: Pages) {
        for buffer in pages.full.drain(..) {
            let at = self.at;
            self.at += buffer.len() as u64;
            self.write(at, buffer);
        }
        self.pages = Some(pages);
    }

    fn write(&mut self, at: u64, buffer: Buffer) {
        let (engine, file) = (Arc::clone(&self.engine), Arc::clone(&self.file));
        self.writes.spawn(async move { engine.write(&file, at, Arc::new(buffer)).await });
    }

    /// A free buffer, when enough has been written.
    async fn buffer(&mut self) -> Result<Buffer, ImageError> {
        while self.writes.len() >= WRITES {
            self.next_written().await?;
        }
        Ok(self.pool.acquire().await)
    }

    async fn next_written(&mut self) -> Result<(), ImageError> {
        let written = self.writes.join_next().await.unwrap_or(Ok(Ok(())));
        let written = written.unwrap_or_else(|error| Err(io::Error::other(error)));
        written.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: io::Error) -> ImageError {
        failed(&self.path, self.archive_bytes, error)
    }

    fn failed_before(&self) -> ImageError {
        self.failed(io::Error::other("an earlier write failed"))
    }
}

fn failed(path: &Path, needed: u64, error: io::Error) -> ImageError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ImageError::Full { path: path.to_owned(), needed }
        }
        _ => ImageError::io("write", path)(error),
    }
}

/// A state or bytes that do not go with the plan.
fn refused(path: &Path) -> impl FnOnce(EncodeError) -> ImageError {
    ImageError::encode(path.display().to_string())
}
