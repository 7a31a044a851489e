//! Memory that an agent lends, as a file that can be mapped.
#![expect(unsafe_code, reason = "mapping a file for writing, privately, and letting go of what was written")]

use std::{
    io,
    ops::Range,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use memmap2::{MmapOptions, MmapRaw, UncheckedAdvice};
use rustix::{
    fs::{SealFlags, SeekFrom, fcntl_get_seals, fstat, seek},
    io::Errno,
};

/// An arena. It is as long as it says, and sealed against shrinking, so that no mapping of it can lose its memory.
#[derive(Debug)]
pub struct Arena {
    file: OwnedFd,
    bytes: usize,
}

impl Arena {
    /// Checks what an agent sent; the error says what is wrong with it.
    pub(super) fn new(file: OwnedFd, bytes: u64) -> Result<Self, String> {
        check(file.as_fd(), bytes, SealFlags::SHRINK)?;
        let bytes = usize::try_from(bytes).map_err(|_| format!("says {bytes} bytes"))?;
        Ok(Self { file, bytes })
    }

    /// Its length, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Maps it as model servers need it: pages that are written to become this process's own, and nobody else sees
    /// what was written. Nothing is reserved for that.
    ///
    /// The mapping outlives arena and session, but the lease ends with the session.
    ///
    /// # Errors
    /// When the system refuses, as for want of address space.
    pub fn map_private(&self) -> io::Result<MmapRaw> {
        // SAFETY: only raw pointers to the mapping are given out, never references, because others fill it meanwhile.
        // That it cannot shrink was checked when it came.
        let map = unsafe { MmapOptions::new().len(self.bytes).no_reserve_swap().map_copy(&self.file) }?;
        Ok(map.into())
    }

    /// Maps it for reading, as all others have it: for the driver of an accelerator. Writing to it is a fault.
    ///
    /// # Errors
    /// When the system refuses, as for want of address space.
    pub fn map_shared(&self) -> io::Result<MmapRaw> {
        MmapOptions::new().len(self.bytes).map_raw_read_only(&self.file)
    }

    /// The first part that begins within `bounds`, ends behind `at` and has its memory already, which it keeps; it may end behind
    /// `bounds`. What has none is given some when it is read, and whoever reads it pays for that: a driver that is told to
    /// register it reads all of it.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn provided(&self, at: usize, bounds: Range<usize>) -> io::Result<Option<Range<usize>>> {
        let mut from = bounds.start;
        loop {
            // Positions are given and told by these calls; nobody reads at the one that they leave behind.
            let start = match seek(&self.file, SeekFrom::Data(offset(from))) {
                Ok(start) => position(start),
                Err(Errno::NXIO) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            if start >= bounds.end {
                return Ok(None);
            }
            let end = position(seek(&self.file, SeekFrom::Hole(offset(start)))?);
            if end > at {
                return Ok(Some(start..end));
            }
            from = end;
        }
    }
}

impl AsFd for Arena {
    /// The file in memory, for those who have ways of their own to use it. It is open for reading.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn offset(position: usize) -> u64 {
    position as u64
}

/// An arena's length can be said so, and nothing of it is beyond.
fn position(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

/// Lets go of what was written to a part of a private mapping, which then is the arena's again.
pub(super) fn forget(map: &MmapRaw, offset: usize, bytes: usize) -> io::Result<()> {
    // SAFETY: there are no references to the mapping, only raw pointers, and whoever had those to this part has given it
    // back.
    unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, bytes) }
}

/// Whether a descriptor is of a file in memory that has so many bytes, and these seals.
pub(super) fn check(file: BorrowedFd<'_>, bytes: u64, seals: SealFlags) -> Result<(), String> {
    let has = fcntl_get_seals(file).map_err(|error| format!("is no file in memory ({error})"))?;
    if !has.contains(seals) {
        return Err("is not sealed".to_owned());
    }
    let stat = fstat(file).map_err(|error| error.to_string())?;
    match u64::try_from(stat.st_size) {
        Ok(found) if found >= bytes => Ok(()),
        _ => Err(format!("has {} bytes, not {bytes}", stat.st_size)),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::FileExt};

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    const PAGE: usize = 4096;

    #[test]
    fn what_has_its_memory_is_told_piece_by_piece() {
        let file = File::from(memfd_create("arena", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(64 * PAGE as u64).unwrap();
        for page in [3, 4, 5, 9, 63] {
            file.write_all_at(&[1], (page * PAGE) as u64).unwrap();
        }
        let arena = Arena { file: file.into(), bytes: 64 * PAGE };
        let provided = |at: usize, bounds: Range<usize>| {
            let found = arena.provided(at, bounds.start * PAGE..bounds.end * PAGE).unwrap();
            found.map(|found| found.start / PAGE..found.end / PAGE)
        };
        assert_eq!(provided(0, 0..64), Some(3..6));
        assert_eq!(provided(5 * PAGE + 1, 0..64), Some(3..6));
        assert_eq!(provided(6 * PAGE, 0..64), Some(9..10));
        assert_eq!(provided(4 * PAGE, 4..5), Some(4..6));
        assert_eq!(provided(0, 6..9), None);
        assert_eq!(provided(10 * PAGE, 0..64), Some(63..64));
        assert_eq!(provided(10 * PAGE, 10..63), None);
    }
}
