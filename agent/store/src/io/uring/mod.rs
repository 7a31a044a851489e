//! The engine for local disks: one thread owns an io_uring and every buffer in flight on it.

use std::{fmt, io, path::Path, sync::Arc, thread::JoinHandle};

use async_trait::async_trait;
use io_uring::{IoUring, Probe, opcode};
use rustix::io::Errno;

use super::{
    Access, Buffer, BufferPool, IoEngine, IoFile, plain, probe,
    transfer::{Answer, Job, Transfer},
};

mod inbox;
mod registered;
mod ring;

use inbox::Inbox;
use ring::Ring;

/// Reads and writes through io_uring.
pub struct UringEngine {
    inbox: Arc<Inbox>,
    direct: bool,
    thread: Option<JoinHandle<()>>,
}

/// What a directory and the kernel it is mounted on offer the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UringSupport {
    /// Files there can bypass the page cache.
    pub direct: bool,
}

impl UringEngine {
    /// Finds out whether io_uring is usable, and what for. Fails with `Unsupported`, and a reason for people, when
    /// the kernel, `kernel.io_uring_disabled` or a seccomp profile refuses it.
    pub fn probe(directory: &Path) -> io::Result<UringSupport> {
        let ring = IoUring::new(1).map_err(|error| explain(&error))?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe).map_err(|error| explain(&error))?;
        let needed = [
            opcode::Read::CODE,
            opcode::Write::CODE,
            opcode::ReadFixed::CODE,
            opcode::WriteFixed::CODE,
            opcode::PollAdd::CODE,
        ];
        if !needed.into_iter().all(|code| probe.is_supported(code)) {
            return Err(unsupported("this kernel's io_uring is too old (Linux 5.6 or later is needed)"));
        }
        Ok(UringSupport { direct: probe::takes_direct(directory)? })
    }

    /// Starts the ring. Buffers of `pool` are registered with the kernel as they are first used; others work too.
    pub fn new(directory: &Path, pool: &BufferPool) -> io::Result<Self> {
        let direct = Self::probe(directory)?.direct;
        let inbox = Arc::new(Inbox::new()?);
        // The ring belongs to the thread that makes it, so it is made there and reports here.
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let (ring_inbox, pool) = (Arc::clone(&inbox), pool.clone());
        let thread =
            std::thread::Builder::new().name("weightd-ring".into()).spawn(move || {
                match Ring::new(ring_inbox, pool) {
                    Ok(ring) => {
                        drop(ready.send(Ok(())));
                        ring.serve();
                    }
                    Err(error) => drop(ready.send(Err(error))),
                }
            })?;
        let engine = Self { inbox, direct, thread: Some(thread) };
        started.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))?;
        Ok(engine)
    }

    async fn run(&self, transfer: Transfer) -> Answer {
        let (job, answer) = Job::new(transfer);
        self.inbox.push(job);
        answer.await.expect("the ring answers every job, also when it fails")
    }
}

fn explain(error: &io::Error) -> io::Error {
    match Errno::from_io_error(error) {
        Some(Errno::NOSYS) => unsupported("this kernel has no io_uring"),
        Some(Errno::PERM | Errno::ACCESS) => {
            unsupported("io_uring is refused: kernel.io_uring_disabled, or a seccomp profile")
        }
        _ => io::Error::new(io::ErrorKind::Unsupported, format!("io_uring cannot be set up: {error}")),
    }
}

fn unsupported(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, why)
}

impl Drop for UringEngine {
    /// Waits until nothing is in flight.
    fn drop(&mut self) {
        self.inbox.close();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the ring's thread panicked");
        }
    }
}

impl fmt::Debug for UringEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UringEngine").field("direct", &self.direct).finish_non_exhaustive()
    }
}

#[async_trait]
impl IoEngine for UringEngine {
    fn name(&self) -> &'static str {
        "io_uring"
    }

    fn is_direct(&self) -> bool {
        self.direct
    }

    async fn write(&self, file: &Arc<IoFile>, offset: u64, buffer: Arc<Buffer>) -> io::Result<()> {
        self.run(Transfer::write(Arc::clone(file), offset, buffer)).await.1
    }

    async fn read(
        &self,
        file: &Arc<IoFile>,
        offset: u64,
        len: usize,
        buffer: Buffer,
    ) -> (Buffer, io::Result<()>) {
        let (memory, outcome) = self.run(Transfer::read(Arc::clone(file), offset, len, buffer)).await;
        (memory.into_filled(), outcome)
    }

    plain::plain_operations!();
}
