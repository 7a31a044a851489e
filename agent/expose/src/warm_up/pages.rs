//! A file's pages, asked for from front to back.

use std::{fs::File, io, num::NonZeroU64, os::unix::fs::FileExt};

use rustix::fs::{Advice, fadvise};

/// What is asked for at a time. Two of them are on their way from the disk at most: whoever reads meanwhile does not
/// queue behind a whole model.
pub(super) const PIECE_BYTES: u64 = 8 << 20;

/// What the kernel is asked for in one call. It takes longer requests and reads only their beginning: as much as the
/// device's read-ahead or its largest request, whichever is more, of which 128 KiB is the usual least.
const STEP_BYTES: u64 = 128 << 10;

/// A file whose pages are on their way into the page cache.
#[derive(Debug)]
pub(super) struct Pages {
    file: File,
    length: u64,
    /// Up to where the kernel was asked.
    asked: u64,
    /// Up to where it is known to have them.
    arrived: u64,
}

impl Pages {
    /// Of a file none of which was asked for.
    pub(super) fn of(file: File) -> io::Result<Self> {
        Ok(Self { length: file.metadata()?.len(), file, asked: 0, arrived: 0 })
    }

    /// Bytes that are still to be asked for.
    pub(super) fn left(&self) -> u64 {
        self.length - self.asked
    }

    /// Asks for so many bytes more, and waits for those that were asked for before.
    pub(super) fn read(&mut self, bytes: u64) -> io::Result<()> {
        let (before, end) = (self.asked, self.length.min(self.asked.saturating_add(bytes)));
        while self.asked < end {
            let step = STEP_BYTES.min(end - self.asked);
            fadvise(&self.file, self.asked, NonZeroU64::new(step), Advice::WillNeed)?;
            self.asked += step;
        }
        self.wait(before)
    }

    /// Waits for all that was asked for.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.wait(self.asked)
    }

    /// Reading a byte of each step waits for its page, brings what the kernel left out, and hears of errors, without
    /// copying the rest: of what is warm already nothing is read.
    fn wait(&mut self, end: u64) -> io::Result<()> {
        while self.arrived < end {
            self.arrived = end.min(self.arrived + STEP_BYTES);
            self.file.read_at(&mut [0], self.arrived - 1)?;
        }
        Ok(())
    }
}
