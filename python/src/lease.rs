//! What an agent lends: arenas that are mapped when they are needed, and waiting for what is not there yet. When the agent
//! ends, the next one is found, and brings what is missing.

use std::{
    io,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use pyo3::prelude::*;
use weightd_client::handoff::{self, Opening, Session};

use crate::{error::Error, memory::Memory};

/// How long the next agent may take to come.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long Python waits for anything before it looks whether somebody wants to interrupt it.
const GLANCE: Duration = Duration::from_millis(100);

/// The tensors of one model, as agents lend them.
#[derive(Debug)]
pub(crate) struct Lease {
    /// What was opened, for messages.
    what: String,
    /// Whether only what is known to be the origin's counts as ready.
    verified: bool,
    /// At each agent so far. Only the last can still bring anything; what was ready at an earlier one stays where it is.
    terms: Mutex<Vec<Arc<Term>>>,
    /// The next agent, as soon as it answers.
    next: Mutex<Option<Opening>>,
}

/// That an agent is gone.
#[derive(Debug, Clone, Copy)]
struct Lost {
    since: Instant,
    /// How many tensors were missing then.
    missing: usize,
}

/// The time of one agent.
#[derive(Debug)]
struct Term {
    session: Arc<Session>,
    /// Its arenas, as far as they were used.
    memory: Mutex<Vec<Option<Arc<Memory>>>>,
}

impl Lease {
    /// Of a session that was just opened.
    pub(crate) fn new(what: String, session: Session, verified: bool) -> Self {
        Self { what, verified, terms: Mutex::new(vec![Arc::new(Term::new(session))]), next: Mutex::default() }
    }

    /// The session at the latest agent.
    pub(crate) fn session(&self) -> Arc<Session> {
        self.latest().session.clone()
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
        let failed = |source| Error::Io { path: self.what.clone().into(), source };
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
            let latest = self.latest();
            match self.wait_at(py, &latest.session, &missing)? {
                Ok(()) => {}
                Err(error) if error.is_absence() => {
                    let missing = missing.iter().map(Range::len).sum();
                    // Agents that come and go without bringing anything are no better than none.
                    let since = lost
                        .filter(|lost| missing >= lost.missing)
                        .map_or_else(Instant::now, |lost| lost.since);
                    lost = Some(Lost { since, missing });
                    self.go_on(py, &latest, since + PATIENCE)?;
                }
                Err(source) => return Err(Error::Handoff { what: self.what.clone(), source }.into()),
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

    /// Goes on at the next agent, unless another thread does before.
    fn go_on(&self, py: Python<'_>, gone: &Arc<Term>, deadline: Instant) -> PyResult<()> {
        loop {
            // It has just gone; and one that goes again and again shall not keep a processor busy.
            py.detach(|| thread::park_timeout(GLANCE));
            py.check_signals()?;
            if Instant::now() >= deadline {
                return Err(self.lost().into());
            }
            if py.detach(|| self.try_next(gone))? {
                return Ok(());
            }
        }
    }

    fn try_next(&self, gone: &Arc<Term>) -> Result<bool, Error> {
        let mut next = lock(&self.next);
        if !Arc::ptr_eq(&self.latest(), gone) {
            return Ok(true);
        }
        let opening = next.get_or_insert_with(|| gone.session.reopen());
        let outcome = opening.wait(GLANCE);
        let ended = !matches!(outcome, Ok(None));
        if ended {
            *next = None;
        }
        let session = outcome.map_err(|source| Error::Handoff { what: self.what.clone(), source })?;
        if let Some(session) = session {
            let mut terms = lock(&self.terms);
            // Agents that brought nothing need not be remembered.
            terms.retain(|term| term.session.has_any());
            terms.push(Arc::new(Term::new(session)));
        }
        Ok(ended)
    }

    fn lost(&self) -> Error {
        Error::Lost { what: self.what.clone(), waited: PATIENCE }
    }

    fn latest(&self) -> Arc<Term> {
        lock(&self.terms).last().expect("there was an agent").clone()
    }

    /// Where a tensor is ready.
    fn holder(&self, position: usize) -> Option<Arc<Term>> {
        lock(&self.terms).iter().find(|term| term.session.is_ready(position, self.verified)).cloned()
    }

    fn missing(&self, tensors: &[Range<usize>]) -> Vec<Range<usize>> {
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for position in tensors.iter().cloned().flatten().filter(|&position| !self.is_ready(position)) {
            match ranges.last_mut() {
                Some(last) if last.end == position => last.end += 1,
                _ => ranges.push(position..position + 1),
            }
        }
        ranges
    }
}

impl Term {
    fn new(session: Session) -> Self {
        let memory = Mutex::new(vec![None; session.arenas()]);
        Self { session: Arc::new(session), memory }
    }

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

/// What is behind these locks is whole at all times, so a panic elsewhere does no harm.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
