//! The engine for kernels and sandboxes without io_uring: a few threads that call pread and pwrite.

use std::{
    fmt, io,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use async_trait::async_trait;

use super::{
    Access, Buffer, IoEngine, IoFile, plain, probe,
    transfer::{Answer, Job, Kind, Transfer, UnderWay, Waiting},
};

/// Enough to keep a local disk busy with chunks of 8 MiB, with some for reads while others write; more only cost stacks and
/// switches.
const THREADS: usize = 6;

/// Reads and writes with threads.
pub struct PwriteEngine {
    queue: Arc<Queue>,
    direct: bool,
    threads: Vec<JoinHandle<()>>,
}

/// What the threads take from. Every transfer in it owns a buffer, so pools bound it.
#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Waiting,
    under_way: UnderWay,
    closed: bool,
}

impl PwriteEngine {
    /// Starts the threads. `directory` tells whether files there can bypass the page cache.
    pub fn new(directory: &Path) -> io::Result<Self> {
        let mut engine = Self {
            queue: Arc::default(),
            direct: probe::takes_direct(directory)?,
            threads: Vec::with_capacity(THREADS),
        };
        for number in 0..THREADS {
            let queue = Arc::clone(&engine.queue);
            let name = format!("weightd-io-{number}");
            // When one cannot be started, dropping the engine ends those that were.
            engine.threads.push(std::thread::Builder::new().name(name).spawn(move || queue.serve())?);
        }
        Ok(engine)
    }

    async fn run(&self, transfer: Transfer) -> Answer {
        let (job, answer) = Job::new(transfer);
        self.queue.state().waiting.push(job);
        self.queue.changed.notify_one();
        answer.await.expect("threads answer every job before they end, and they end only with the engine")
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread's life: until the engine is gone and nothing waits any more.
    fn serve(&self) {
        while let Some(mut job) = self.take() {
            let kind = job.transfer.kind();
            job.transfer.run();
            job.answer();
            if kind != Kind::Read {
                self.state().under_way.ended(kind);
                self.changed.notify_one();
            }
        }
    }

    fn take(&self) -> Option<Job> {
        let mut state = self.state();
        loop {
            let under_way = state.under_way;
            if let Some(job) = state.waiting.pop(under_way) {
                state.under_way.begun(job.transfer.kind());
                return Some(job);
            }
            if state.closed && state.waiting.is_empty() {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for PwriteEngine {
    fn drop(&mut self) {
        self.queue.state().closed = true;
        self.queue.changed.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("an IO thread panicked");
            }
        }
    }
}

impl fmt::Debug for PwriteEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PwriteEngine").field("direct", &self.direct).finish_non_exhaustive()
    }
}

#[async_trait]
impl IoEngine for PwriteEngine {
    fn name(&self) -> &'static str {
        "pwrite"
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
