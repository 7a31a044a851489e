//! What an agent lends: arenas that are mapped when they are needed, and waiting for what is not there yet. When the agent
//! ends, the next one is found, and brings what is missing. When an agent finds that bytes were wrong, it is asked once more, and
//! what was given before is compared with what is right.

use std::{
    collections::{BTreeSet, HashSet},
    io,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use pyo3::prelude::*;
use weightd_client::handoff::{self, FailureKind, Opening, Session};

use crate::{error::Error, memory::Memory};

/// How long the next agent may take to come.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long Python waits for anything before it looks whether somebody wants to interrupt it.
const GLANCE: Duration = Duration::from_millis(100);

/// How often in a row an agent may find that what it brought is wrong. It brings it anew by itself, but not for ever.
const TRIES: u32 = 3;

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

/// That an agent has ended a lease.
#[derive(Debug, Clone, Copy)]
struct Lost {
    since: Instant,
    /// How many tensors were missing then.
    missing: usize,
    /// How often it was because of wrong bytes.
    wrong: u32,
}

/// The time of one agent.
#[derive(Debug)]
struct Term {
    session: Arc<Session>,
    /// Its arenas, as far as they were used.
    memory: Mutex<Vec<Option<Arc<Memory>>>>,
    /// Tensors that somebody was given here before they were known to be what the origin has.
    unconfirmed: Mutex<BTreeSet<usize>>,
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
        self.holder(position, self.verified).is_some()
    }

    /// The memory that a tensor lies in, once it is ready.
    pub(crate) fn memory(&self, py: Python<'_>, position: usize) -> PyResult<Arc<Memory>> {
        let holder = loop {
            match self.holder(position, self.verified) {
                Some(holder) => break holder,
                None => self.wait(py, std::slice::from_ref(&(position..position + 1)), self.verified)?,
            }
        };
        holder.give(position);
        Ok(holder.memory(position).map_err(|source| self.failed(source))?)
    }

    /// Whether only what is known to be the origin's counts as ready.
    pub(crate) fn verified(&self) -> bool {
        self.verified
    }

    /// Waits until all of these are ready, or with `verified` known to be what the origin has. Other threads run meanwhile,
    /// and signals are heard.
    pub(crate) fn wait(&self, py: Python<'_>, tensors: &[Range<usize>], verified: bool) -> PyResult<()> {
        let mut lost: Option<Lost> = None;
        loop {
            let missing = self.missing(tensors, verified);
            if missing.is_empty() {
                return if verified { Ok(py.detach(|| self.confirm(tensors))?) } else { Ok(()) };
            }
            let latest = self.latest();
            let Err(error) = self.wait_at(py, &latest.session, &missing, verified)? else { continue };
            let missing = missing.iter().map(Range::len).sum();
            // Agents that come and go without bringing anything are no better than none.
            let before = lost.filter(|lost| missing >= lost.missing);
            let is_wrong = error.kind() == FailureKind::Corrupt;
            let since = before.map_or_else(Instant::now, |lost| lost.since);
            let wrong = before.map_or(0, |lost| lost.wrong) + u32::from(is_wrong);
            if !error.is_absence() && (!is_wrong || wrong > TRIES) {
                return Err(self.handoff(error).into());
            }
            lost = Some(Lost { since, missing, wrong });
            self.go_on(py, &latest, since + PATIENCE)?;
            if is_wrong {
                // Whoever has a tensor that it gave before shall not be given another next to a wrong one.
                self.wait(py, &latest.unconfirmed(), true)?;
            }
        }
    }

    /// Sees to it that what was given is what the origin has, for tensors that are known to be so at some agent. Those that an
    /// earlier one gave, and did not live to compare, are compared with the later one's.
    fn confirm(&self, tensors: &[Range<usize>]) -> Result<(), Error> {
        let terms = lock(&self.terms).clone();
        let meant: HashSet<usize> = tensors.iter().cloned().flatten().collect();
        for term in &terms {
            for position in term.unconfirmed().into_iter().flatten().filter(|at| meant.contains(at)) {
                if !term.session.is_ready(position, true) {
                    let right = self.holder(position, true).expect("it was waited for");
                    if !term.has_same(&right, position).map_err(|source| self.failed(source))? {
                        let tensor = term.session.table().tensors()[position].name.clone();
                        return Err(Error::Wrong { what: self.what.clone(), tensor });
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
        let session = outcome.map_err(|source| self.handoff(source))?;
        if let Some(session) = session {
            let mut terms = lock(&self.terms);
            // Agents that brought nothing need not be remembered.
            terms.retain(|term| term.session.has_any() || !term.unconfirmed().is_empty());
            terms.push(Arc::new(Term::new(session)));
        }
        Ok(ended)
    }

    fn lost(&self) -> Error {
        Error::Lost { what: self.what.clone(), waited: PATIENCE }
    }

    fn handoff(&self, source: handoff::Error) -> Error {
        Error::Handoff { what: self.what.clone(), source }
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Io { path: self.what.clone().into(), source }
    }

    fn latest(&self) -> Arc<Term> {
        lock(&self.terms).last().expect("there was an agent").clone()
    }

    /// Where a tensor is ready.
    fn holder(&self, position: usize, verified: bool) -> Option<Arc<Term>> {
        lock(&self.terms).iter().find(|term| term.session.is_ready(position, verified)).cloned()
    }

    fn missing(&self, tensors: &[Range<usize>], verified: bool) -> Vec<Range<usize>> {
        let mut ranges: Vec<Range<usize>> = Vec::new();
        let is_missing = |position: &usize| self.holder(*position, verified).is_none();
        for position in tensors.iter().cloned().flatten().filter(is_missing) {
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
        Self { session: Arc::new(session), memory, unconfirmed: Mutex::default() }
    }

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
            Ok((Memory::lent(map, term.session.clone()), tensor.offset, tensor.bytes))
        };
        let ((here, offset, bytes), (there, other_offset, _)) = (lent(self)?, lent(other)?);
        Ok(here.has_same(offset, &there, other_offset, bytes))
    }

    /// The memory that a tensor lies in.
    fn memory(&self, position: usize) -> io::Result<Arc<Memory>> {
        let arena = self.session.table().tensors()[position].arena;
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
