//! How the store touches its disk.
//!
//! Everything that must survive a crash goes through an [`IoEngine`]: data of blobs, small files written whole,
//! links, renames, and the index. Three engines exist: [`UringEngine`] (io_uring, registered buffers, O_DIRECT),
//! [`PwriteEngine`] (threads, for kernels and file systems without), and [`PowerLossEngine`], which tests use to
//! lose whatever was not synced.

use std::{fmt, io, path::Path, sync::Arc};

use async_trait::async_trait;

mod buffer;
#[cfg(test)]
mod conformance;
mod file;
mod index_backend;
mod page_cache;
mod plain;
mod power_loss;
mod probe;
mod pwrite;
mod stream_copy;
mod transfer;
mod uring;

pub use buffer::{Buffer, BufferPool, Lender};
pub use file::IoFile;
pub use index_backend::IndexBackend;
pub(crate) use page_cache::is_cached;
pub use plain::TEMPORARY_SUFFIX;
pub(crate) use plain::{is_leftover, temporary_name};
pub use power_loss::{Losses, PowerLossEngine};
pub use probe::{EngineChoice, open_engine};
pub use pwrite::PwriteEngine;
pub use uring::{UringEngine, UringSupport};

/// Block that O_DIRECT needs offsets, lengths and memory aligned to. Devices ask for 512 or 4,096 bytes.
pub const BLOCK_BYTES: u64 = 4096;

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reads only.
    Read,
    /// Reads and writes.
    Write,
}

/// One way to touch the disk. Data calls are asynchronous; all others block and belong on a blocking thread.
#[async_trait]
pub trait IoEngine: fmt::Debug + Send + Sync {
    /// `io_uring` or `pwrite`, for people.
    fn name(&self) -> &'static str;

    /// Whether data bypasses the page cache.
    fn is_direct(&self) -> bool;

    /// Creates a file of `len` bytes, its extents allocated so that writing cannot run out of space. Fails with
    /// `AlreadyExists` if it is there, with `StorageFull` if there is no room (and leaves no file then).
    fn create(&self, path: &Path, len: u64) -> io::Result<Arc<IoFile>>;

    /// Opens a file that exists.
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<IoFile>>;

    /// Writes a buffer's filled part at `offset` (any alignment; aligned whole blocks go direct). The engine holds it
    /// until the kernel is done, also when the caller goes away; others may read it meanwhile.
    async fn write(&self, file: &Arc<IoFile>, offset: u64, buffer: Arc<Buffer>) -> io::Result<()>;

    /// Fills a buffer with `len` bytes from `offset`, which is a multiple of [`BLOCK_BYTES`]. Comes back filled with
    /// as many bytes as there were before the end of the file.
    async fn read(
        &self,
        file: &Arc<IoFile>,
        offset: u64,
        len: usize,
        buffer: Buffer,
    ) -> (Buffer, io::Result<()>);

    /// Makes everything written to a file durable: its data, and the metadata needed to read it.
    fn sync(&self, file: &IoFile) -> io::Result<()>;

    /// Makes everything written to the file system that `directory` is on durable: cheaper than many syncs.
    fn sync_all(&self, directory: &Path) -> io::Result<()>;

    /// Makes names in a directory durable.
    fn sync_directory(&self, directory: &Path) -> io::Result<()>;

    /// Writes a small file whole under a temporary name, syncs it when `durable`, and renames it into place.
    /// The name itself is durable after [`IoEngine::sync_directory`] or [`IoEngine::sync_all`].
    fn write_whole(&self, path: &Path, bytes: &[u8], durable: bool) -> io::Result<()>;

    /// Gives an existing file another name in the same file system.
    fn link(&self, existing: &Path, new: &Path) -> io::Result<()>;

    /// Renames a file or directory.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file. What is not there is removed already.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes a directory and its parents.
    fn create_directories(&self, path: &Path) -> io::Result<()>;

    /// Removes a directory and everything in it. What is not there is removed already.
    fn remove_tree(&self, path: &Path) -> io::Result<()>;

    /// Opens the file that the index lives in, created when missing.
    fn index_backend(&self, path: &Path) -> io::Result<Box<dyn redb::StorageBackend>>;
}
