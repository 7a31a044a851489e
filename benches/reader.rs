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
use memmap2::Mmap;
use weightd_benches::fresh_memory;

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
    /// Past the page cache, 64 times 2 MiB at a time; nothing is done with them.
    Direct { files: Vec<PathBuf> },
    /// By a thread for each core, into memory that this process never had before, and kept until all is there.
    Kept { files: Vec<PathBuf> },
}

const READ_BYTES: usize = 1 << 20;
const PAGE_BYTES: usize = 4096;
/// Of the lengths and numbers that were tried, what disks give most for.
const CHUNK_BYTES: usize = 2 << 20;
const CHUNKS_AT_ONCE: usize = 64;

fn main() -> Result<()> {
    match Options::parse().how {
        How::Sequential { files } => files.iter().try_for_each(|path| sequential(path)),
        How::Touch { files } => files.iter().try_for_each(|path| touch(path)),
        How::Direct { files } => direct(&files),
        How::Kept { files } => kept(&files),
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
    at_once(CHUNKS_AT_ONCE, || {
        let mut buffer = fresh_memory(CHUNK_BYTES)?;
        while let Some((file, offset)) = next() {
            // Short at the end of a file only.
            black_box(file.read_at(&mut buffer, offset)?);
        }
        Ok(())
    })?;
    Ok(())
}

fn kept(paths: &[PathBuf]) -> Result<()> {
    let left = Mutex::new(paths.iter());
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
    let all = at_once(thread::available_parallelism()?.get(), || {
        let mut all = Vec::new();
        while let Some(path) = next() {
            let mut file = open(path)?;
            let mut memory = fresh_memory(usize::try_from(file.metadata()?.len())?)?;
            file.read_exact(&mut memory).with_context(|| format!("reading {}", path.display()))?;
            all.push(memory);
        }
        Ok(all)
    })?;
    black_box(all);
    Ok(())
}

/// Has so many threads do the same; gives what each did.
fn at_once<T: Send>(threads: usize, work: impl Fn() -> Result<T> + Sync) -> Result<Vec<T>> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(&work)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}
