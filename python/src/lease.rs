//! What an agent lends: arenas that are mapped when they are needed, and waiting for what is not there yet. When the agent
//! ends, the next one is found, and brings what is missing. When an agent finds that bytes were wrong, it is asked once more, and
//! what was given before is compared with what is right.

use std::{
    collections::{BTreeSet, HashSet},
    io,
    ops::Range,
    sync::{Arc, Mutex, OnceLock},
};

use pyo3::prelude::*;
use weightd_client::handoff::{self, FailureKind, Opening, Session};

use crate::{
    agents::{Agents, GLANCE, Lost, Term, lock, ranges},
    cuda::{Lent, Uploader, Window},
    error::Error,
    memory::Memory,
};

/// How often in a row an agent may find that what it brought is wrong. It brings it anew by itself, but not for ever.
const TRIES: u32 = 3;

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
    /// The same as a device reads them.
    windows: Mutex<Vec<Option<Arc<Window>>>>,
    /// Tensors that somebody was given here before they were known to be what the origin has.
    unconfirmed: Mutex<BTreeSet<usize>>,
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
        self.holder(position, self.verified).is_some()
    }

    /// The memory that a tensor lies in, once it is ready.
    pub(crate) fn memory(&self, py: Python<'_>, position: usize) -> PyResult<Arc<Memory>> {
        let holder = self.given(py, position)?;
        Ok(holder.memory(position).map_err(|source| self.failed(source))?)
    }

    /// The arena that a tensor lies in, as a device reads it, once the tensor is ready.
    pub(crate) fn window(
        &self,
        py: Python<'_>,
        position: usize,
        uploader: &Uploader,
    ) -> PyResult<Arc<Window>> {
        let holder = self.given(py, position)?;
        Ok(holder.window(position, uploader).map_err(|source| self.failed(source))?)
    }

    /// Where a tensor is ready, once it is. Somebody has it from now on.
    fn given(&self, py: Python<'_>, position: usize) -> PyResult<Arc<Tenancy>> {
        let holder = loop {
            match self.holder(position, self.verified) {
                Some(holder) => break holder,
                None => self.wait(py, std::slice::from_ref(&(position..position + 1)), self.verified)?,
            }
        };
        holder.give(position);
        Ok(holder)
    }

    /// Whether only what is known to be the origin's counts as ready.
    pub(crate) fn verified(&self) -> bool {
        self.verified
    }

    /// Waits until all of these are ready, or with `verified` known to be what the origin has. Other threads run meanwhile,
    /// and signals are heard.
    pub(crate) fn wait(&self, py: Python<'_>, tensors: &[Range<usize>], verified: bool) -> PyResult<()> {
        let (mut lost, mut wrong) = (None, 0);
        loop {
            let missing = self.missing(tensors, verified);
            if missing.is_empty() {
                return if verified { Ok(py.detach(|| self.confirm(tensors))?) } else { Ok(()) };
            }
            let latest = self.agents.latest();
            let Err(error) = self.wait_at(py, &latest.session, &missing, verified)? else { continue };
            let is_wrong = error.kind() == FailureKind::Corrupt;
            let now = Lost::again(lost, missing.iter().map(Range::len).sum());
            // Agents that come and go without bringing anything are no better than none.
            wrong = if now.is_like(lost) { wrong } else { 0 } + u32::from(is_wrong);
            if !error.is_absence() && (!is_wrong || wrong > TRIES) {
                return Err(self.agents.failed(error).into());
            }
            lost = Some(now);
            let begin = |term: &Tenancy| {
                // What an earlier one brought is there.
                let chosen = self.chosen.get().map_or(&[][..], Vec::as_slice);
                self.want(term, &self.missing(chosen, self.verified));
            };
            self.agents.go_on(py, &latest, now, begin)?;
            if is_wrong {
                // Whoever has a tensor that it gave before shall not be given another next to a wrong one.
                self.wait(py, &latest.unconfirmed(), true)?;
            }
        }
    }

    /// Sees to it that what was given is what the origin has, for tensors that are known to be so at some agent. Those that an
    /// earlier one gave, and did not live to compare, are compared with the later one's.
    fn confirm(&self, tensors: &[Range<usize>]) -> Result<(), Error> {
        let terms = self.agents.all();
        let meant: HashSet<usize> = tensors.iter().cloned().flatten().collect();
        for term in &terms {
            for position in term.unconfirmed().into_iter().flatten().filter(|at| meant.contains(at)) {
                if !term.session.is_ready(position, true) {
                    let right = self.holder(position, true).expect("it was waited for");
                    if !term.has_same(&right, position).map_err(|source| self.failed(source))? {
                        let tensor = term.session.table().tensors()[position].name.clone();
                        return Err(Error::Wrong { what: self.agents.what().to_owned(), tensor });
                    }
                }
                lock(&term.unconfirmed).remove(&position);
            }
        }
        Ok(())
    }

    /// Waits for one agent; what it says of itself is apart from what Python says.
    fn wait_at(
        &self,
        py: Python<'_>,
        session: &Session,
        tensors: &[Range<usize>],
        verified: bool,
    ) -> PyResult<Result<(), handoff::Error>> {
        if let Err(error) = py.detach(|| session.want(tensors, verified)) {
            return Ok(Err(error));
        }
        loop {
            match py.detach(|| session.wait_for(tensors, verified, GLANCE)) {
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

    fn failed(&self, source: io::Error) -> Error {
        Error::Io { path: self.agents.what().into(), source }
    }

    /// Where a tensor is ready.
    fn holder(&self, position: usize, verified: bool) -> Option<Arc<Tenancy>> {
        self.agents.find(|term| term.session.is_ready(position, verified))
    }

    fn missing(&self, tensors: &[Range<usize>], verified: bool) -> Vec<Range<usize>> {
        let is_missing = |position: &usize| self.holder(*position, verified).is_none();
        ranges(tensors.iter().cloned().flatten().filter(is_missing))
    }
}

impl Tenancy {
    /// Remembers that somebody has a tensor from here on, unless it is known to be right.
    fn give(&self, position: usize) {
        if !self.session.is_ready(position, true) {
            lock(&self.unconfirmed).insert(position);
        }
    }

    /// What somebody has from here that may be wrong.
    fn unconfirmed(&self) -> Vec<Range<usize>> {
        lock(&self.unconfirmed).iter().map(|&position| position..position + 1).collect()
    }

    /// Whether a tensor has here, as it was lent, the bytes that it has there.
    fn has_same(&self, other: &Self, position: usize) -> io::Result<bool> {
        // Not what this process has mapped: it may have written there.
        let lent = |term: &Self| -> io::Result<(Memory, usize, usize)> {
            let tensor = &term.session.table().tensors()[position];
            let map = term.session.arena(tensor.arena).map_shared()?;
            Ok((Memory::lent(map, term.session.clone()), tensor.offset, tensor.span))
        };
        let ((here, offset, bytes), (there, other_offset, _)) = (lent(self)?, lent(other)?);
        Ok(here.has_same(offset, &there, other_offset, bytes))
    }

    /// The memory that a tensor lies in.
    fn memory(&self, position: usize) -> io::Result<Arc<Memory>> {
        self.once(&self.memory, position, |arena| {
            Ok(Memory::lent(self.session.arena(arena).map_private()?, self.session.clone()))
        })
    }

    /// The same as a device reads it.
    fn window(&self, position: usize, uploader: &Uploader) -> io::Result<Arc<Window>> {
        self.once(&self.windows, position, |arena| {
            Window::new(Lent::Session(self.session.clone(), arena), uploader.device(), uploader.chunk())
        })
    }

    /// What is made of the arena that a tensor lies in, once.
    fn once<T>(
        &self,
        made: &Mutex<Vec<Option<Arc<T>>>>,
        position: usize,
        make: impl FnOnce(usize) -> io::Result<T>,
    ) -> io::Result<Arc<T>> {
        let arena = self.session.table().tensors()[position].arena;
        let mut made = lock(made);
        if let Some(known) = &made[arena] {
            return Ok(known.clone());
        }
        let new = Arc::new(make(arena)?);
        made[arena] = Some(new.clone());
        Ok(new)
    }
}

impl Term for Tenancy {
    type Open = Session;

    fn new(session: Session) -> Self {
        let memory = Mutex::new(vec![None; session.arenas()]);
        let windows = Mutex::new(vec![None; session.arenas()]);
        Self { session: Arc::new(session), memory, windows, unconfirmed: Mutex::default() }
    }

    fn reopen(&self) -> Opening {
        self.session.reopen()
    }

    fn is_of_use(&self) -> bool {
        self.session.has_any() || !lock(&self.unconfirmed).is_empty()
    }
}
