//! What an agent sends through a ring: each tensor is there as long as it is used. When the agent ends, what is used stays,
//! and the next one brings the others.

use std::{
    collections::HashMap,
    io,
    ops::Range,
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use pyo3::prelude::*;
use weightd_client::handoff::{self, Opening, Stream};

use crate::{
    agents::{Agents, GLANCE, Lost, Term, lock, ranges},
    cuda::{Lent, Uploader, Window},
    error::Error,
    memory::Memory,
};

/// The tensors of one model, as they come from agents one after the other.
#[derive(Debug)]
pub(crate) struct Streaming {
    agents: Agents<Stream>,
    /// All that there are, in the order in which they shall come.
    chosen: OnceLock<Vec<Range<usize>>>,
    /// What was taken last: whoever goes on goes on from there.
    at: AtomicUsize,
    /// What is in use. Whoever uses a tensor twice uses the same memory.
    used: Mutex<HashMap<usize, Weak<Memory>>>,
    /// The ring of the latest agent that a device read from, as it reads it.
    window: Mutex<Option<(Arc<Stream>, Arc<Window>)>>,
}

impl Streaming {
    /// Of a stream that was just opened.
    pub(crate) fn new(what: String, stream: Stream) -> Self {
        Self {
            agents: Agents::new(what, stream),
            chosen: OnceLock::new(),
            at: AtomicUsize::new(0),
            used: Mutex::default(),
            window: Mutex::default(),
        }
    }

    /// The stream at the latest agent.
    pub(crate) fn stream(&self) -> Arc<Stream> {
        self.agents.latest()
    }

    /// Has these come, in this order. `are_all`: as they come by themselves.
    pub(crate) fn choose(&self, tensors: Vec<Range<usize>>, are_all: bool) {
        let chosen = self.chosen.get_or_init(|| tensors);
        if !are_all {
            // An agent that ends meanwhile is noticed by whoever waits.
            let _ended = self.agents.latest().want(chosen);
        }
    }

    /// Has these come next, in this order.
    pub(crate) fn want(&self, py: Python<'_>, tensors: &[Range<usize>]) {
        let _ended = py.detach(|| self.agents.latest().want(tensors));
    }

    /// Whether a tensor may be used without waiting.
    pub(crate) fn is_there(&self, position: usize) -> bool {
        self.used(position).is_some() || self.agents.latest().is_there(position)
    }

    /// The memory of a tensor, once it has come. Its place in the ring is given back with the last who holds it.
    pub(crate) fn memory(&self, py: Python<'_>, position: usize) -> PyResult<Arc<Memory>> {
        let mut lost: Option<Lost> = None;
        loop {
            let latest = self.agents.latest();
            match self.take_at(py, &latest, position)? {
                Ok(memory) => return Ok(memory),
                Err(error) if error.is_absence() => {
                    let now = Lost::again(lost, 1);
                    lost = Some(now);
                    self.agents.go_on(py, &latest, now, |stream| self.go_on_at(stream))?;
                }
                Err(source) => return Err(self.agents.failed(source).into()),
            }
        }
    }

    /// The ring that a tensor's memory is in, as a device reads it, and where the tensor lies there. None where it is not in the
    /// latest agent's.
    pub(crate) fn window(
        &self,
        memory: &Memory,
        uploader: &Uploader,
    ) -> Result<Option<(Arc<Window>, usize)>, Error> {
        let latest = self.agents.latest();
        let Memory::Taken(taken) = memory else { return Ok(None) };
        if !taken.is_of(&latest) {
            return Ok(None);
        }
        let mut known = lock(&self.window);
        if let Some((stream, window)) = &*known
            && Arc::ptr_eq(stream, &latest)
        {
            return Ok(Some((window.clone(), taken.offset())));
        }
        let failed = |source: io::Error| Error::Io { path: self.agents.what().into(), source };
        let window = Window::new(Lent::Stream(latest.clone()), uploader.device(), uploader.chunk());
        let window = Arc::new(window.map_err(failed)?);
        *known = Some((latest, window.clone()));
        Ok(Some((window, taken.offset())))
    }

    /// Takes it of one agent, unless it is in use; what the agent says of itself is apart from what Python says.
    fn take_at(
        &self,
        py: Python<'_>,
        stream: &Stream,
        position: usize,
    ) -> PyResult<Result<Arc<Memory>, handoff::Error>> {
        let mut taking = None;
        loop {
            if let Some(memory) = self.used(position) {
                return Ok(Ok(memory));
            }
            let taking = taking.get_or_insert_with(|| stream.taking(position));
            match py.detach(|| taking.wait(GLANCE)) {
                Ok(Some(taken)) => {
                    let memory = Arc::new(Memory::Taken(taken));
                    lock(&self.used).insert(position, Arc::downgrade(&memory));
                    self.at.store(position, Ordering::Relaxed);
                    return Ok(Ok(memory));
                }
                Ok(None) => py.check_signals()?,
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    fn used(&self, position: usize) -> Option<Arc<Memory>> {
        lock(&self.used).get(&position).and_then(Weak::upgrade)
    }

    /// What was used before is not likely to be used again.
    fn go_on_at(&self, stream: &Stream) {
        let at = self.at.load(Ordering::Relaxed);
        let rest =
            self.chosen.get().into_iter().flatten().cloned().flatten().filter(|&position| position >= at);
        let _ended = stream.want(&ranges(rest));
    }
}

impl Term for Stream {
    type Open = Self;

    fn new(stream: Self) -> Self {
        stream
    }

    fn reopen(&self) -> Opening<Self> {
        self.reopen()
    }

    fn is_of_use(&self) -> bool {
        // What was taken of it has it as long as it needs it.
        false
    }
}
