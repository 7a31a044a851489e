//! How fast tiers are: measured, because no name says it.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::Instant,
};

use rustix::fs::OFlags;
use weightd_types::CHUNK_BYTES;

use crate::{
    Store, StoreError,
    io::BLOCK_BYTES,
    partial::to_usize,
    usage::{blob_files, is_file},
};

/// Reads at once: a network disk gives one reader a fraction of what it has.
const READERS: u64 = 4;
/// What each of them reads.
const READ_BYTES: u64 = 2 * CHUNK_BYTES;

impl Store {
    /// Measures tiers whose speed is not known, and the store's own directory if there are any. Reads some dozens of megabytes
    /// of each, past the page cache. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Io`] of the store's own directory.
    pub fn measure_tiers(&self) -> Result<(), StoreError> {
        let tiers = self.inner.tiers.all();
        let unknown: Vec<_> = tiers.iter().filter(|tier| tier.speed() == 0).cloned().collect();
        for tier in &unknown {
            let Some(path) = tier.longest() else { continue };
            match measure(&path) {
                Ok(speed) => tier.set_speed(speed),
                Err(error) => {
                    tracing::warn!(tier = %tier.directory().display(), %error, "its speed cannot be measured");
                }
            }
        }
        let own = &self.inner.tiers.own_speed;
        if !tiers.is_empty()
            && own.load(Ordering::Relaxed) == 0
            && let Some(path) = self.longest_own()?
            && let Ok(speed) = measure(&path)
        {
            own.store(speed, Ordering::Relaxed);
        }
        if !unknown.is_empty() {
            // Which of them is the fastest is known now.
            let _changing = crate::store::lock(&self.inner.changing);
            self.inner.tiers.set(self.inner.tiers.all().to_vec());
        }
        Ok(())
    }

    fn longest_own(&self) -> Result<Option<PathBuf>, StoreError> {
        let files = blob_files(&self.paths().blobs())?;
        let is_complete = |path: &Path| path.with_added_extension("json").exists();
        let complete = files.into_iter().filter(|(path, _)| is_complete(path));
        let complete = complete.filter_map(|(path, found)| Some((found.ok()?.len(), path)));
        let longest = complete.max_by_key(|(len, _)| *len);
        Ok(longest.map(|(_, path)| path).filter(|path| is_file(path)))
    }
}

/// Bytes a second that a file gives to several readers.
fn measure(path: &Path) -> io::Result<u64> {
    let direct = i32::try_from((OFlags::DIRECT | OFlags::NOFOLLOW).bits()).expect("open flags are positive");
    let file = OpenOptions::new().read(true).custom_flags(direct).open(path)?;
    let stretch = (file.metadata()?.len() / READERS).min(READ_BYTES);
    let stretch = stretch - stretch % BLOCK_BYTES;
    if stretch == 0 {
        // Too short to say anything: as if unknown.
        return Ok(0);
    }
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|at| {
                scope.spawn({
                    let file = &file;
                    move || read(file, at * stretch, stretch)
                })
            })
            .collect();
        readers.into_iter().try_for_each(|reader| {
            reader.join().unwrap_or_else(|_| Err(io::Error::other("a thread that read has panicked")))
        })
    })?;
    let nanos = begun.elapsed().as_nanos().max(1);
    Ok(u64::try_from(u128::from(stretch * READERS) * 1_000_000_000 / nanos).unwrap_or(u64::MAX))
}

fn read(file: &File, at: u64, len: u64) -> io::Result<()> {
    let mut memory = memmap2::MmapMut::map_anon(to_usize(len))?;
    file.read_exact_at(&mut memory, at)
}
