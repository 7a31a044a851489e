//! The thread that owns the ring.
//!
//! Whatever the kernel may still write into or read from is owned by [`Flight`] until its completion has been seen;
//! a caller that goes away takes nothing with it.
#![allow(unsafe_code)]

use std::{io, os::fd::AsRawFd, sync::Arc};

use io_uring::{IoUring, opcode, squeue, types};
use rustix::io::Errno;

use super::{
    inbox::{Inbox, gone},
    registered::Registered,
};
use crate::io::{
    BufferPool,
    transfer::{Job, Memory, Step, Transfer, UnderWay},
};

/// Transfers in flight at once: more than there are of those that are limited, and of buffers in most pools, together.
const DEPTH: usize = 128;

/// Room for one entry of each transfer and for the poll of the inbox.
const ENTRIES: u32 = 256;

/// The `user_data` of the poll; transfers have their slot's number.
const BELL: u64 = u64::MAX;

/// The ring and what is in flight on it.
pub(super) struct Ring {
    uring: IoUring,
    registered: Registered,
    flight: Flight,
    inbox: Arc<Inbox>,
}

/// Jobs the kernel works on.
struct Flight {
    slots: Vec<Option<Job>>,
    vacant: Vec<usize>,
    under_way: UnderWay,
}

impl Ring {
    pub(super) fn new(inbox: Arc<Inbox>, pool: BufferPool) -> io::Result<Self> {
        // Only this thread enters the ring, and it need not be interrupted for completions it will wait for anyway.
        // Kernels before 6.0 do not know these flags.
        let uring = IoUring::builder()
            .setup_single_issuer()
            .setup_coop_taskrun()
            .build(ENTRIES)
            .or_else(|_| IoUring::new(ENTRIES))?;
        let registered = Registered::new(&uring, pool);
        let (slots, vacant) = ((0..DEPTH).map(|_| None).collect(), (0..DEPTH).rev().collect());
        let flight = Flight { slots, vacant, under_way: UnderWay::default() };
        let mut ring = Self { uring, registered, flight, inbox };
        ring.watch_inbox();
        Ok(ring)
    }

    /// Works until the inbox is closed and nothing is in flight.
    pub(super) fn serve(mut self) {
        loop {
            self.accept();
            if self.flight.is_empty() && self.inbox.is_finished() {
                return;
            }
            if let Err(error) = self.wait(1) {
                tracing::error!(%error, "the io_uring failed; every transfer will from now on");
                return;
            }
            let done = self.reap();
            if !done.is_empty() {
                // The disk has what is next before those hear who then keep the processor busy with what came.
                self.accept();
                // What was not submitted goes with the next, which says what is wrong.
                let _ = self.wait(0);
                done.into_iter().for_each(Job::answer);
            }
        }
    }

    /// Takes jobs in as long as there are slots.
    fn accept(&mut self) {
        while let Some(slot) = self.flight.vacant.last().copied() {
            let Some(job) = self.inbox.pop(self.flight.under_way) else { return };
            self.flight.vacant.pop();
            self.flight.under_way.begun(job.transfer.kind());
            if let Some(done) = self.go_on(slot, job) {
                done.answer();
            }
        }
    }

    /// Submits all that is prepared and sleeps until so many have completed.
    fn wait(&mut self, completions: usize) -> io::Result<()> {
        let submitted = self.uring.submit_and_wait(completions);
        match submitted.map_err(|error| (Errno::from_io_error(&error), error)) {
            Ok(_) | Err((Some(Errno::INTR | Errno::BUSY), _)) => Ok(()),
            // The kernel is short of memory for now.
            Err((Some(Errno::AGAIN), _)) => {
                std::thread::yield_now();
                Ok(())
            }
            Err((_, error)) => Err(error),
        }
    }

    /// Goes on with what has completed. Gives the jobs that are done.
    fn reap(&mut self) -> Vec<Job> {
        let mut done = Vec::new();
        let completed = self.uring.completion().map(|entry| (entry.user_data(), entry.result()));
        for (slot, result) in completed.collect::<Vec<_>>() {
            if slot == BELL {
                self.inbox.silence();
                self.watch_inbox();
                continue;
            }
            let slot = usize::try_from(slot).expect("slots are numbered from zero to DEPTH");
            let mut job = self.flight.slots[slot].take().expect("only what is in flight completes");
            job.transfer.advance(outcome(result));
            done.extend(self.go_on(slot, job));
        }
        done
    }

    /// Takes a job's next step, or gives it back if there is none.
    fn go_on(&mut self, slot: usize, mut job: Job) -> Option<Job> {
        let Some(step) = job.transfer.next() else {
            self.flight.vacant.push(slot);
            self.flight.under_way.ended(job.transfer.kind());
            return Some(job);
        };
        let index = self.registered.index(&self.uring.submitter(), job.transfer.memory.buffer());
        let entry = entry(&mut job.transfer, step, index).user_data(slot as u64);
        // In its place before the kernel can see it: what is in flight is owned by the table.
        self.flight.slots[slot] = Some(job);
        self.push(&entry);
        None
    }

    /// Asks for a completion when the inbox's bell rings.
    fn watch_inbox(&mut self) {
        let bell = types::Fd(self.inbox.bell());
        self.push(&opcode::PollAdd::new(bell, POLLIN).build().user_data(BELL));
    }

    fn push(&mut self, entry: &squeue::Entry) {
        let mut queue = self.uring.submission();
        // SAFETY: the entry's memory and descriptor belong to a job in `flight`, which keeps both until the entry's
        // completion has been reaped, or leaks the memory if that can never be. The poll has no memory, and its
        // descriptor lives in the inbox that the ring holds.
        unsafe { queue.push(entry) }.expect("there is room for an entry of each slot and the poll");
    }
}

const POLLIN: u32 = libc::POLLIN as u32;

/// What the ring is told to do for one step.
fn entry(transfer: &mut Transfer, step: Step, index: Option<u16>) -> squeue::Entry {
    let position = transfer.position();
    let file = types::Fd(transfer.file.descriptor(step.direct).as_raw_fd());
    let len = u32::try_from(step.len).expect("a step fits a buffer");
    let range = step.start..step.start + step.len;
    match &mut transfer.memory {
        Memory::Filling(buffer) => {
            let pointer = buffer.whole_mut()[range].as_mut_ptr();
            match index {
                Some(index) => opcode::ReadFixed::new(file, pointer, len, index).offset(position).build(),
                None => opcode::Read::new(file, pointer, len).offset(position).build(),
            }
        }
        Memory::Shared(buffer) => {
            let pointer = buffer.whole()[range].as_ptr();
            match index {
                Some(index) => opcode::WriteFixed::new(file, pointer, len, index).offset(position).build(),
                None => opcode::Write::new(file, pointer, len).offset(position).build(),
            }
        }
    }
}

/// A completion's result: bytes, or a negated errno.
fn outcome(result: i32) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| Errno::from_raw_os_error(result.wrapping_neg()))
}

impl Flight {
    fn is_empty(&self) -> bool {
        self.vacant.len() == self.slots.len()
    }
}

impl Drop for Ring {
    /// After a clean end there is nothing to do. After a failure or a panic the kernel may still be writing into
    /// the buffers in flight: their memory is never used again.
    fn drop(&mut self) {
        for mut job in self.flight.slots.iter_mut().filter_map(Option::take) {
            job.transfer.memory.abandon();
            job.transfer.fail(gone());
            job.answer();
        }
        self.inbox.abandon();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{IoEngine, IoFile, UringEngine};

    #[test]
    fn negated_errnos_are_told_from_bytes() {
        assert_eq!(outcome(8192), Ok(8192));
        assert_eq!(outcome(0), Ok(0));
        assert_eq!(outcome(-28), Err(Errno::NOSPC));
        assert_eq!(outcome(-4), Err(Errno::INTR));
    }

    /// The kernel may still be writing into them, so nobody else may get the same memory.
    #[tokio::test]
    async fn a_ring_that_fails_answers_every_job_and_never_reuses_memory_in_flight() {
        let directory = crate::io::conformance::on_disk();
        let file = Arc::new(IoFile::create(&directory.path().join("blob"), 1 << 20, true).unwrap());
        let pool = BufferPool::new(2).unwrap();
        let inbox = Arc::new(Inbox::new().unwrap());
        let mut ring = Ring::new(Arc::clone(&inbox), pool.clone()).unwrap();
        let job = || Job::new(Transfer::read(Arc::clone(&file), 0, 1 << 20, pool.try_acquire().unwrap()));

        let (in_flight, first) = job();
        let memory = in_flight.transfer.memory.buffer().whole().as_ptr();
        inbox.push(in_flight);
        ring.accept();
        drop(ring.uring.submit());
        let (waiting, second) = job();
        inbox.push(waiting);
        drop(ring);

        let (buffer, outcome) = first.await.unwrap();
        let buffer = buffer.into_filled();
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_ne!(buffer.whole().as_ptr(), memory);
        assert_eq!(second.await.unwrap().1.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        drop(buffer);
        let (late, third) = job();
        inbox.push(late);
        assert_eq!(third.await.unwrap().1.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(pool.in_use(), 0);
    }

    /// Readers have a chunk from memory while it is on its way to the disk; a small pool must not lose a buffer by that.
    #[tokio::test]
    async fn a_ring_that_fails_gives_back_what_others_read_once_they_are_done() {
        let directory = crate::io::conformance::on_disk();
        let file = Arc::new(IoFile::create(&directory.path().join("blob"), 1 << 20, true).unwrap());
        let pool = BufferPool::new(1).unwrap();
        let inbox = Arc::new(Inbox::new().unwrap());
        let mut ring = Ring::new(Arc::clone(&inbox), pool.clone()).unwrap();
        let mut buffer = pool.try_acquire().unwrap();
        buffer.extend_from_slice(&[7; 1 << 20]);
        let shown = Arc::new(buffer);
        let memory = shown.whole().as_ptr();
        let (job, answer) = Job::new(Transfer::write(Arc::clone(&file), 0, Arc::clone(&shown)));
        inbox.push(job);
        ring.accept();
        drop(ring.uring.submit());
        drop(ring);

        let (written, outcome) = answer.await.unwrap();
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        drop(written);
        assert_eq!(shown[..], [7; 1 << 20], "whoever reads it goes on");
        assert_eq!((shown.whole().as_ptr(), pool.in_use()), (memory, 1));
        drop(shown);
        assert_eq!(pool.in_use(), 0);
        let next = pool.try_acquire().unwrap();
        assert_ne!(next.whole().as_ptr(), memory, "the kernel may still be reading there");
    }

    /// As where RLIMIT_MEMLOCK refuses to pin: the same work by the unregistered operations.
    #[tokio::test]
    async fn buffers_of_other_pools_work_unregistered() {
        let directory = crate::io::conformance::on_disk();
        let (own, other) = (BufferPool::new(1).unwrap(), BufferPool::new(1).unwrap());
        let engine = UringEngine::new(directory.path(), &own).unwrap();
        let file = engine.create(&directory.path().join("blob"), 10_000).unwrap();
        let mut buffer = other.acquire().await;
        buffer.extend_from_slice(&[7; 10_000]);
        engine.write(&file, 0, Arc::new(buffer)).await.unwrap();
        let (buffer, outcome) = engine.read(&file, 0, 10_000, own.acquire().await).await;
        outcome.unwrap();
        assert_eq!(&buffer[..], [7; 10_000]);
        let (buffer, outcome) = engine.read(&file, 8192, 10_000, other.acquire().await).await;
        outcome.unwrap();
        assert_eq!(&buffer[..], [7; 10_000 - 8192]);
    }
}
