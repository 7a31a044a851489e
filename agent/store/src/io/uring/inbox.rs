//! How jobs reach the ring's thread: a queue, and an eventfd that the ring polls.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::event::{EventfdFlags, eventfd};

use crate::io::transfer::{Job, UnderWay, Waiting};

/// Jobs on their way to the ring. Each owns a buffer, so pools bound it.
#[derive(Debug)]
pub(super) struct Inbox {
    state: Mutex<State>,
    bell: OwnedFd,
}

#[derive(Debug, Default)]
struct State {
    waiting: Waiting,
    closed: bool,
    /// The ring is gone and will take nothing any more.
    abandoned: bool,
}

impl Inbox {
    pub(super) fn new() -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { state: Mutex::default(), bell })
    }

    /// Hands a job to the ring, or fails it at once when the ring is gone.
    pub(super) fn push(&self, mut job: Job) {
        let mut state = self.state();
        if state.abandoned {
            drop(state);
            job.transfer.fail(gone());
            return job.answer();
        }
        state.waiting.push(job);
        drop(state);
        self.ring_bell();
    }

    /// No more jobs will come.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.ring_bell();
    }

    /// The next job beside what is under way.
    pub(super) fn pop(&self, under_way: UnderWay) -> Option<Job> {
        self.state().waiting.pop(under_way)
    }

    /// Whether no job is left and none will come.
    pub(super) fn is_finished(&self) -> bool {
        let state = self.state();
        state.closed && state.waiting.is_empty()
    }

    /// Fails what waits and all that will come.
    pub(super) fn abandon(&self) {
        let waiting = {
            let mut state = self.state();
            state.abandoned = true;
            state.waiting.take_all()
        };
        for mut job in waiting {
            job.transfer.fail(gone());
            job.answer();
        }
    }

    /// What to poll for readability.
    pub(super) fn bell(&self) -> RawFd {
        self.bell.as_raw_fd()
    }

    /// Makes the bell silent until it is rung again.
    pub(super) fn silence(&self) {
        // There is nothing to do about EAGAIN, which says that it is silent.
        let _ = rustix::io::read(&self.bell, &mut [0u8; 8]);
    }

    fn ring_bell(&self) {
        // Fails only when the counter is full, and then it rings already.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What callers get when the ring has failed.
pub(super) fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the io_uring failed, see the log; restart the agent")
}
