//! Which engine a directory gets.

use std::{io, path::Path, sync::Arc};

use rustix::io::Errno;

use super::{
    BLOCK_BYTES, BufferPool, IoEngine, IoFile, PwriteEngine, UringEngine, file::block_bytes, plain,
    transfer::Transfer,
};

/// Which engine the configuration asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// io_uring where the kernel lets us and the file system takes O_DIRECT, else pwrite.
    #[default]
    Auto,
    /// io_uring, or an error that says why not.
    Uring,
    /// Threads with pwrite.
    Pwrite,
}

/// Starts an engine for the store in `directory`, which exists and is writable. `pool` is where the buffers of most
/// transfers come from.
pub fn open_engine(
    directory: &Path,
    pool: &BufferPool,
    choice: EngineChoice,
) -> io::Result<Arc<dyn IoEngine>> {
    let pwrite = || Ok(Arc::new(PwriteEngine::new(directory)?) as Arc<dyn IoEngine>);
    let uring = || Ok(Arc::new(UringEngine::new(directory, pool)?) as Arc<dyn IoEngine>);
    match choice {
        EngineChoice::Pwrite => pwrite(),
        EngineChoice::Uring => uring(),
        EngineChoice::Auto => match UringEngine::probe(directory) {
            Ok(support) if support.direct => uring().or_else(|why| {
                warn_of_fallback(directory, &why);
                pwrite()
            }),
            Ok(_) => {
                warn_of_fallback(directory, &"its file system does not take O_DIRECT");
                pwrite()
            }
            Err(why) if why.kind() == io::ErrorKind::Unsupported => {
                warn_of_fallback(directory, &why);
                pwrite()
            }
            Err(why) => Err(why),
        },
    }
}

fn warn_of_fallback(directory: &Path, why: &dyn std::fmt::Display) {
    tracing::warn!(directory = %directory.display(), %why, "writing with threads instead of io_uring");
}

/// Whether files in `directory` can bypass the page cache: tries it with a block.
pub(super) fn takes_direct(directory: &Path) -> io::Result<bool> {
    let path = plain::temporary_name(&directory.join("probe"))?;
    let file = IoFile::create(&path, BLOCK_BYTES, true)?;
    std::fs::remove_file(&path)?;
    if !file.is_direct() {
        return Ok(false);
    }
    let mut buffer = BufferPool::new(1)?.try_acquire().expect("nobody else knows this pool");
    buffer.set_len(block_bytes());
    let mut write = Transfer::write(Arc::new(file), 0, Arc::new(buffer));
    write.run();
    match write.finish().1 {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Ok(false),
        Err(error) => Err(error),
    }
}
