//! A file in memory that the agent writes to through its mapping, and clients may only read.

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::{StreamExt, TryStreamExt, stream};
use memmap2::{Advice, MmapOptions, MmapRaw};
use rustix::fs::{Mode, SealFlags, fchmod, fcntl_add_seals};
use tokio::sync::OnceCell;

use super::memory::Provider;
use crate::reading::to_usize;

/// Memory is provided so much at a time, ahead of what fills it.
const STEP: u64 = 64 << 20;

/// A file in memory. None of it is there before it is provided.
#[derive(Debug)]
pub(crate) struct LentMemory {
    name: String,
    bytes: u64,
    mapping: Arc<MmapRaw>,
    /// What clients are given: open for reading only.
    lent: OwnedFd,
    provider: Provider,
    /// For each step, whether its memory is there.
    steps: Vec<OnceCell<()>>,
    /// Bytes that are kept from being swapped.
    locked: AtomicU64,
}

impl LentMemory {
    /// Over a file that has so many bytes. From here on nobody else can write to it.
    pub(crate) fn new(name: String, bytes: u64, memory: OwnedFd, provider: Provider) -> io::Result<Self> {
        let file = File::from(memory);
        let mapping = MmapOptions::new().len(to_usize(bytes)).map_raw(&file)?;
        let _ = mapping.advise(Advice::HugePage);
        fcntl_add_seals(&file, SealFlags::FUTURE_WRITE | SealFlags::GROW | SealFlags::SHRINK)?;
        let lent = read_only(&file)?;
        Ok(Self::over(name, bytes, mapping, lent, provider))
    }

    /// Over a file that an earlier agent filled and sealed: it is only lent from here on.
    pub(crate) fn adopt(name: String, bytes: u64, memory: OwnedFd, provider: Provider) -> io::Result<Self> {
        let file = File::from(memory);
        if file.metadata()?.len() != bytes {
            return Err(io::Error::other("it has another length"));
        }
        let lent = read_only(&file)?;
        let mapping = MmapOptions::new().len(to_usize(bytes)).map_raw_read_only(&lent)?;
        let locked = provider.keep_from_swap(&mapping, 0, to_usize(bytes));
        let this = Self::over(name, bytes, mapping, lent, provider);
        this.locked.store(locked, Ordering::Relaxed);
        this.steps.iter().for_each(|step| drop(step.set(())));
        Ok(this)
    }

    fn over(name: String, bytes: u64, mapping: MmapRaw, lent: OwnedFd, provider: Provider) -> Self {
        let steps = (0..bytes.div_ceil(STEP)).map(|_| OnceCell::new()).collect();
        Self { name, bytes, mapping: Arc::new(mapping), lent, provider, steps, locked: AtomicU64::new(0) }
    }

    /// What it is called, with the keeper too.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its length.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What clients map.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.lent.as_fd()
    }

    /// Where a byte of it is, for those who know that it is there and that they alone use it.
    pub(crate) fn at(&self, offset: u64) -> *mut u8 {
        self.mapping.as_mut_ptr().wrapping_add(to_usize(offset))
    }

    /// Has the memory of a part provided, charged to whom it should be.
    pub(crate) async fn provide(&self, from: u64, bytes: u64) -> Result<(), String> {
        for step in from / STEP..(from + bytes).div_ceil(STEP) {
            self.provide_step(step).await?;
        }
        Ok(())
    }

    /// Has all of its memory provided, from front to back.
    pub(crate) async fn provide_all(&self) -> Result<(), String> {
        // The keeper makes one step while the agent maps the one before.
        let steps = stream::iter(0..self.steps.len() as u64).map(|step| self.provide_step(step));
        steps.buffered(2).try_collect().await
    }

    /// Bytes of memory that were provided, and those that were not yet.
    pub(crate) fn provided(&self) -> (u64, u64) {
        let there = self.steps.iter().filter(|step| step.initialized()).count() as u64 * STEP;
        let there = there.min(self.bytes);
        (there, self.bytes - there)
    }

    async fn provide_step(&self, step: u64) -> Result<(), String> {
        let cell = &self.steps[usize::try_from(step).expect("there are few steps")];
        let from = step * STEP;
        let bytes = STEP.min(self.bytes - from);
        let provide = async || {
            let locked = self.provider.provide(&self.name, &self.mapping, from, bytes).await?;
            self.locked.fetch_add(locked, Ordering::Relaxed);
            Ok(())
        };
        cell.get_or_try_init(provide).await.copied()
    }
}

impl Drop for LentMemory {
    fn drop(&mut self) {
        self.provider.unlocked(self.locked.load(Ordering::Relaxed));
    }
}

/// The same file, open for reading only. Whoever gets a descriptor must not open it anew for more than it was given for.
fn read_only(file: &File) -> io::Result<OwnedFd> {
    fchmod(file, Mode::RUSR)?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(OpenOptions::new().read(true).open(path)?.into())
}
