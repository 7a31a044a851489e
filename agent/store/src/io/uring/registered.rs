//! Buffers that the kernel has pinned ahead of time, so that no transfer pays for looking pages up.
//!
//! Pinning touches every page. Buffers are therefore registered one by one as they are first used, and a job that
//! needs four of them keeps four of them resident, not the pool.
#![allow(unsafe_code)]

use io_uring::{IoUring, Submitter};

use crate::io::{Buffer, BufferPool};

/// Which of a pool's buffers are registered.
#[derive(Debug)]
pub(super) struct Registered {
    pool: BufferPool,
    states: Vec<State>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Unused,
    Registered,
    Refused,
}

impl Registered {
    /// Prepares an empty table, if the kernel can (Linux 5.19), and else does without.
    pub(super) fn new(ring: &IoUring, pool: BufferPool) -> Self {
        let slots = u32::try_from(pool.count()).unwrap_or(u32::MAX);
        let state = match ring.submitter().register_buffers_sparse(slots) {
            Ok(()) => State::Unused,
            Err(error) => {
                tracing::warn!(%error, "buffers cannot be registered with io_uring; going on without");
                State::Refused
            }
        };
        Self { states: vec![state; pool.count()], pool }
    }

    /// The number under which the kernel knows this buffer, registering it if that has not been tried.
    pub(super) fn index(&mut self, submitter: &Submitter<'_>, buffer: &Buffer) -> Option<u16> {
        let index = buffer.index_in(&self.pool)?;
        let state = self.states.get_mut(usize::try_from(index).ok()?)?;
        if *state == State::Unused {
            *state = register(submitter, index, buffer);
        }
        if *state == State::Registered { u16::try_from(index).ok() } else { None }
    }
}

fn register(submitter: &Submitter<'_>, index: u32, buffer: &Buffer) -> State {
    let memory = buffer.whole();
    let vector = libc::iovec { iov_base: memory.as_ptr().cast_mut().cast(), iov_len: memory.len() };
    // SAFETY: the vector describes the buffer's whole mapping. The pool, of which `Registered` holds a handle for as
    // long as the ring lives, never unmaps it, and memory that a failed ring abandons is never unmapped either.
    match unsafe { submitter.register_buffers_update(index, &[vector], None) } {
        Ok(()) => State::Registered,
        Err(error) => {
            // Most often RLIMIT_MEMLOCK: a process without CAP_IPC_LOCK may pin 8 MiB.
            tracing::warn!(index, %error, "a buffer stays unregistered; raising RLIMIT_MEMLOCK would help");
            State::Refused
        }
    }
}
