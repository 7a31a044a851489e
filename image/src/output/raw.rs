//! A raw disk in a file: sparse, with long extents where there are data.

use std::{io, path::PathBuf, sync::Arc};

use rustix::{fs::FallocateFlags, io::Errno};
use tokio::task::{JoinSet, spawn_blocking};
use weightd_store::io::{Access, Buffer, BufferPool, EngineChoice, IoEngine, IoFile, open_engine};

use super::Partial;
use crate::{ImageError, disk::Disk};

/// Writes in flight: the disk has work while the next bytes arrive.
const WRITES: usize = 8;

/// A raw disk that is being written.
pub(crate) struct RawDisk {
    engine: Arc<dyn IoEngine>,
    file: Arc<IoFile>,
    path: PathBuf,
    bytes: u64,
    /// What is to be written, for messages.
    data_bytes: u64,
    writes: JoinSet<io::Result<()>>,
}

impl RawDisk {
    /// Opens the file, as long as the disk, with room for all data.
    pub(super) fn open(partial: &Partial, disk: &Disk, pool: &BufferPool) -> Result<Self, ImageError> {
        let path = partial.path().to_owned();
        let file = partial.file();
        let data = disk.data();
        let data_bytes = data.iter().map(|range| range.len()).sum();
        let failed = |action, error| failed(action, &path, data_bytes, error);
        file.set_len(disk.bytes).map_err(|error| failed("extend", error))?;
        for range in data {
            match rustix::fs::fallocate(file, FallocateFlags::empty(), range.start, range.len()) {
                Ok(()) => {}
                // No promise of room here; writing finds out.
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => break,
                Err(error) => return Err(failed("make room in", error.into())),
            }
        }
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or(std::path::Path::new("."));
        let engine = open_engine(directory, pool, EngineChoice::Auto)
            .map_err(|error| failed("write beside", error))?;
        let file = engine.open(&path, Access::Write).map_err(|error| failed("open", error))?;
        Ok(Self { engine, file, path, bytes: disk.bytes, data_bytes, writes: JoinSet::new() })
    }

    pub(super) async fn put(&mut self, at: u64, buffer: Buffer) -> Result<(), ImageError> {
        while self.writes.len() >= WRITES {
            self.next_written().await?;
        }
        let (engine, file) = (Arc::clone(&self.engine), Arc::clone(&self.file));
        self.writes.spawn(async move { engine.write(&file, at, Arc::new(buffer)).await });
        Ok(())
    }

    /// Waits for all writes, and makes them durable.
    pub(super) async fn sync(&mut self) -> Result<(), ImageError> {
        while !self.writes.is_empty() {
            self.next_written().await?;
        }
        let (engine, file) = (Arc::clone(&self.engine), Arc::clone(&self.file));
        let synced = spawn_blocking(move || engine.sync(&file)).await;
        let synced = synced.unwrap_or_else(|error| Err(io::Error::other(error)));
        synced.map_err(|error| failed("sync", &self.path, self.data_bytes, error))
    }

    pub(super) async fn finish(mut self) -> Result<u64, ImageError> {
        self.sync().await?;
        Ok(self.bytes)
    }

    async fn next_written(&mut self) -> Result<(), ImageError> {
        let written = self.writes.join_next().await.unwrap_or(Ok(Ok(())));
        let written = written.unwrap_or_else(|error| Err(io::Error::other(error)));
        written.map_err(|error| failed("write", &self.path, self.data_bytes, error))
    }
}

fn failed(action: &'static str, path: &std::path::Path, needed: u64, error: io::Error) -> ImageError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ImageError::Full { path: path.to_owned(), needed }
        }
        _ => ImageError::io(action, path)(error),
    }
}
