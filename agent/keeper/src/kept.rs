//! Descriptors under a name, and whether anyone attends to them.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use memmap2::MmapRaw;

use crate::{protocol::Kind, refuse};

/// What is kept under a name.
pub(crate) struct Kept {
    pub(crate) kind: Kind,
    pub(crate) grace: u64,
    pub(crate) descriptors: Vec<OwnedFd>,
    /// The client that attends to it.
    pub(crate) attendant: Option<u64>,
    /// When it was left alone.
    pub(crate) alone_since: Instant,
    /// Whether its readers get EIO.
    pub(crate) refuses: bool,
    /// Of an arena that was made here, through which its memory is provided.
    pub(crate) mapping: Option<MmapRaw>,
}

impl Kept {
    pub(crate) fn new(kind: Kind, grace: u64, descriptors: Vec<OwnedFd>, attendant: Option<u64>) -> Self {
        let (alone_since, refuses, mapping) = (Instant::now(), false, None);
        Self { kind, grace, descriptors, attendant, alone_since, refuses, mapping }
    }

    pub(crate) fn borrowed(&self) -> Vec<BorrowedFd<'_>> {
        self.descriptors.iter().map(AsFd::as_fd).collect()
    }

    pub(crate) fn device(&self) -> Option<BorrowedFd<'_>> {
        self.descriptors.first().filter(|_| self.kind == Kind::Fuse).map(AsFd::as_fd)
    }

    /// Length and file of an arena.
    pub(crate) fn arena(&self) -> Option<(u64, BorrowedFd<'_>)> {
        let Kind::Arena { bytes } = self.kind else { return None };
        Some((bytes, self.descriptors.first()?.as_fd()))
    }

    /// When readers begin to get EIO, if nobody comes. Never, after a grace longer than clocks reach.
    pub(crate) fn refuses_at(&self) -> Option<Instant> {
        let is_waiting = self.kind == Kind::Fuse && self.attendant.is_none() && !self.refuses;
        self.alone_since.checked_add(Duration::from_secs(self.grace)).filter(|_| is_waiting)
    }

    /// Has readers wait again. Whether this keeper made them not wait does not matter: an earlier one may have, and
    /// that is seen by everyone who has the same connection.
    pub(crate) fn stop_refusing(&mut self) -> io::Result<()> {
        if let Some(device) = self.device() {
            refuse::end(device)?;
        }
        self.refuses = false;
        Ok(())
    }
}

/// What is no longer kept, because it was dropped or another was put in its place, is no longer refused.
impl Drop for Kept {
    fn drop(&mut self) {
        if self.refuses {
            let _ = self.stop_refusing();
        }
    }
}
