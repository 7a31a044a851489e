//! Reads files to their ends, as a model server would, and says nothing: what it cost is for whoever started it.

use std::{
    fs::File,
    hint::black_box,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use memmap2::Mmap;

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
}

const READ_BYTES: usize = 1 << 20;
const PAGE_BYTES: usize = 4096;

fn main() -> Result<()> {
    match Options::parse().how {
        How::Sequential { files } => files.iter().try_for_each(|path| sequential(path)),
        How::Touch { files } => files.iter().try_for_each(|path| touch(path)),
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
