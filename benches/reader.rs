//! Reads files to their ends, as a model server would, and says nothing: what it cost is for whoever started it.

use std::{
    fs::File,
    hint::black_box,
    io::Read,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    thread,
};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use memmap2::{Mmap, MmapMut};

/// Reads files.
#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    how: How,
}

#[derive(Subcommand)]
enum How {
    /// By `read`, a megabyte at a time.
    Sequential { files: Vec<PathBuf> },
    /// By a mapping, one byte of every page in order.
    Touch { files: Vec<PathBuf> },
    /// Past the page cache, 16 times 2 MiB at a time; nothing is done with them.
    Direct { files: Vec<PathBuf> },
}

const READ_BYTES: usize = 1 << 20;
const PAGE_BYTES: usize = 4096;
/// Of the lengths and numbers that were tried, what a disk of ours gives most for.
const CHUNK_BYTES: usize = 2 << 20;
const CHUNKS_AT_ONCE: usize = 16;

fn main() -> Result<()> {
    match Options::parse().how {
        How::Sequential { files } => files.iter().try_for_each(|path| sequential(path)),
        How::Touch { files } => files.iter().try_for_each(|path| touch(path)),
        How::Direct { files } => direct(&files),
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("opening {}", path.display()))
}

fn sequential(path: &Path) -> Result<()> {
    let (mut file, mut buffer) = (open(path)?, vec![0; READ_BYTES]);
    while file.read(&mut buffer).with_context(|| format!("reading {}", path.display()))? > 0 {
        black_box(&buffer);
    }
    Ok(())
}

#[expect(unsafe_code, reason = "mapping a file is what is measured")]
fn touch(path: &Path) -> Result<()> {
    // SAFETY: what is mapped is never changed while it is shown.
    let map = unsafe { Mmap::map(&open(path)?) }.with_context(|| format!("mapping {}", path.display()))?;
    for page in map.chunks(PAGE_BYTES) {
        black_box(page[0]);
    }
    Ok(())
}

fn direct(paths: &[PathBuf]) -> Result<()> {
    let mut files = Vec::new();
    for path in paths {
        let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
        let file = File::options().read(true).custom_flags(flags).open(path);
        let file = file.with_context(|| format!("opening {}", path.display()))?;
        files.push((file.metadata()?.len(), file));
    }
    let chunks =
        files.iter().flat_map(|(len, file)| (0..*len).step_by(CHUNK_BYTES).map(move |offset| (file, offset)));
    let chunks = Mutex::new(chunks);
    let next = || chunks.lock().unwrap_or_else(PoisonError::into_inner).next();
    thread::scope(|scope| {
        let readers: Vec<_> = (0..CHUNKS_AT_ONCE)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    // Anonymous memory begins on a page, as direct reads want it.
                    let mut buffer = MmapMut::map_anon(CHUNK_BYTES)?;
                    buffer.advise(memmap2::Advice::HugePage)?;
                    while let Some((file, offset)) = next() {
                        // Short at the end of a file only.
                        black_box(file.read_at(&mut buffer, offset)?);
                    }
                    Ok(())
                })
            })
            .collect();
        readers
            .into_iter()
            .try_for_each(|reader| reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}
