//! What an agent lends: arenas that are mapped when they are needed, and waiting for what is not there yet. When the agent
//! ends, the next one is found, and brings what is missing.

use std::{
    io,
    ops::Range,
    sync::{Arc, Mutex, OnceLock},
};

use pyo3::prelude::*;
use weightd_client::handoff::{self, Opening, Session};

use crate::{
    agents::{Agents, GLANCE, Lost, Term, lock, ranges},
    error::Error,
    memory::Memory,
};

/// The tensors of one model, as agents lend them.
#[derive(Debug)]
pub(crate) struct Lease {
    /// Whether only what is known to be the origin's counts as ready.
    verified: bool,
    /// What was ready at an earlier agent stays where it is.
    agents: Agents<Tenancy>,
    /// The only tensors that shall be brought, when not all shall be.
    chosen: OnceLock<Vec<Range<usize>>>,
}

/// What one agent lends.
#[derive(Debug)]
struct Tenancy {
    session: Arc<Session>,
    /// Its arenas, as far as they were used.
    memory: Mutex<Vec<Option<Arc<Memory>>>>,
}

impl Lease {
    /// Of a session that was just opened.
    pub(crate) fn new(what: String, session: Session, verified: bool) -> Self {
        Self { verified, agents: Agents::new(what, session), chosen: OnceLock::new() }
    }

    /// The session at the latest agent.
    pub(crate) fn session(&self) -> Arc<Session> {
        self.agents.latest().session.clone()
    }

    /// Has these brought, and at the next agent as well. Nothing else is, in a session that brings what is wanted.
    pub(crate) fn choose(&self, tensors: Vec<Range<usize>>) {
        let chosen = self.chosen.get_or_init(|| tensors);
        self.want(&self.agents.latest(), chosen);
    }

    /// Whether a tensor may be used without waiting.
    pub(crate) fn is_ready(&self, position: usize) -> bool {
        self.holder(position).is_some()
    }

    /// The memory that a tensor lies in, once it is ready.
    pub(crate) fn memory(&self, py: Python<'_>, position: usize) -> PyResult<Arc<Memory>> {
        let holder = loop {
            match self.holder(position) {
                Some(holder) => break holder,
                None => self.wait(py, std::slice::from_ref(&(position..position + 1)))?,
            }
        };
        let arena = holder.session.table().tensors()[position].arena;
        let failed = |source| Error::Io { path: self.agents.what().into(), source };
        Ok(holder.memory(arena).map_err(failed)?)
    }

    /// Waits until all of these are ready. Other threads run meanwhile, and signals are heard.
    pub(crate) fn wait(&self, py: Python<'_>, tensors: &[Range<usize>]) -> PyResult<()> {
        let mut lost: Option<Lost> = None;
        loop {
            let missing = self.missing(tensors);
            if missing.is_empty() {
                return Ok(());
            }
            let latest = self.agents.latest();
            match self.wait_at(py, &latest.session, &missing)? {
                Ok(()) => {}
                Err(error) if error.is_absence() => {
                    let now = Lost::again(lost, missing.iter().map(Range::len).sum());
                    lost = Some(now);
                    let begin =
                        |term: &Tenancy| self.want(term, self.chosen.get().map_or(&[], Vec::as_slice));
                    self.agents.go_on(py, &latest, now, begin)?;
                }
                Err(source) => return Err(self.agents.failed(source).into()),
            }
        }
    }

    /// Waits for one agent; what it says of itself is apart from what Python says.
    fn wait_at(
        &self,
        py: Python<'_>,
        session: &Session,
        tensors: &[Range<usize>],
    ) -> PyResult<Result<(), handoff::Error>> {
        if let Err(error) = py.detach(|| session.want(tensors, self.verified)) {
            return Ok(Err(error));
        }
        loop {
            match py.detach(|| session.wait_for(tensors, self.verified, GLANCE)) {
                Ok(true) => return Ok(Ok(())),
                Ok(false) => py.check_signals()?,
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    fn want(&self, term: &Tenancy, tensors: &[Range<usize>]) {
        // An agent that ends meanwhile is noticed by whoever waits.
        let _ended = term.session.want(tensors, self.verified);
    }

    /// Where a tensor is ready.
    fn holder(&self, position: usize) -> Option<Arc<Tenancy>> {
        self.agents.find(|term| term.session.is_ready(position, self.verified))
    }

    fn missing(&self, tensors: &[Range<usize>]) -> Vec<Range<usize>> {
        ranges(tensors.iter().cloned().flatten().filter(|&position| !self.is_ready(position)))
    }
}

impl Tenancy {
    fn memory(&self, arena: usize) -> io::Result<Arc<Memory>> {
        let mut known = lock(&self.memory);
        if let Some(memory) = &known[arena] {
            return Ok(memory.clone());
        }
        let memory = Arc::new(Memory::lent(self.session.arena(arena).map_private()?, self.session.clone()));
        known[arena] = Some(memory.clone());
        Ok(memory)
    }
}

impl Term for Tenancy {
    type Open = Session;

    fn new(session: Session) -> Self {
        let memory = Mutex::new(vec![None; session.arenas()]);
        Self { session: Arc::new(session), memory }
    }

    fn reopen(&self) -> Opening {
        self.session.reopen()
    }

    fn is_of_use(&self) -> bool {
        self.session.has_any()
    }
}
