//! Memory in large pages, and which pages the machine gives to memory that is shared.

use std::{fs, io};

use memmap2::{Advice, MmapMut};

const SWITCH: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

/// Memory of so many bytes that this process never had before, in pages as large as the kernel gives: the disk reads those of 2 MiB
/// about twice as fast as those of 4 KiB. It begins on a page, as direct reads and writes want it.
///
/// # Errors
/// When there is none.
pub fn fresh_memory(len: usize) -> io::Result<MmapMut> {
    let memory = MmapMut::map_anon(len)?;
    memory.advise(Advice::HugePage)?;
    Ok(memory)
}

/// A setting of the machine, which is what it was before when this is dropped.
#[derive(Debug)]
pub struct Pages {
    before: String,
}

impl Pages {
    /// Sets who gets huge pages: `never`, or `advise` for those who ask.
    ///
    /// # Errors
    /// When the machine does not let us, which takes root.
    pub fn set(who: &str) -> io::Result<Self> {
        let settings = fs::read_to_string(SWITCH)?;
        let chosen =
            |word: &str| word.strip_prefix('[').and_then(|word| word.strip_suffix(']')).map(str::to_owned);
        let before = settings.split_whitespace().find_map(chosen);
        let before = before.ok_or_else(|| io::Error::other(format!("{SWITCH} says {settings:?}")))?;
        fs::write(SWITCH, who)?;
        Ok(Self { before })
    }
}

#[allow(clippy::print_stderr, reason = "a benchmark reports to its terminal")]
impl Drop for Pages {
    fn drop(&mut self) {
        if let Err(error) = fs::write(SWITCH, &self.before) {
            eprintln!("warning: {SWITCH} is not {} again: {error}", self.before);
        }
    }
}
