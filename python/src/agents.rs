//! One agent after the other: when one ends, the next is found, and goes on.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use pyo3::prelude::*;
use weightd_client::handoff::{self, Opening, Outcome};

use crate::error::Error;

/// How long the next agent may take to come.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long Python waits for anything before it looks whether somebody wants to interrupt it.
pub(crate) const GLANCE: Duration = Duration::from_millis(100);

/// The time of one agent.
pub(crate) trait Term: Sized + Send + Sync {
    /// What is open there.
    type Open: Outcome + fmt::Debug + Send;

    /// Of what was just opened.
    fn new(open: Self::Open) -> Self;

    /// Begins to open the same at the next agent.
    fn reopen(&self) -> Opening<Self::Open>;

    /// Whether anything of it is worth keeping once there is the next one.
    fn is_of_use(&self) -> bool;
}

/// Those that had the tensors of a model so far.
#[derive(Debug)]
pub(crate) struct Agents<T: Term> {
    /// What was opened, for messages.
    what: String,
    /// Only the last can still bring anything.
    terms: Mutex<Vec<Arc<T>>>,
    /// The next agent, as soon as it answers.
    next: Mutex<Option<Opening<T::Open>>>,
}

/// That an agent is gone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lost {
    since: Instant,
    /// How many tensors were missing then.
    missing: usize,
}

impl Lost {
    /// Now, with so many tensors missing. Agents that come and go without bringing anything are no better than none.
    pub(crate) fn again(before: Option<Self>, missing: usize) -> Self {
        let since =
            before.filter(|lost| missing >= lost.missing).map_or_else(Instant::now, |lost| lost.since);
        Self { since, missing }
    }

    /// Whether nothing has come since it was so before.
    pub(crate) fn is_like(self, before: Option<Self>) -> bool {
        before.is_some_and(|before| self.since == before.since)
    }
}

impl<T: Term> Agents<T> {
    /// The first of which has just opened it.
    pub(crate) fn new(what: String, open: T::Open) -> Self {
        Self { what, terms: Mutex::new(vec![Arc::new(T::new(open))]), next: Mutex::default() }
    }

    /// What was opened.
    pub(crate) fn what(&self) -> &str {
        &self.what
    }

    pub(crate) fn latest(&self) -> Arc<T> {
        lock(&self.terms).last().expect("there was an agent").clone()
    }

    /// All of them, the latest last.
    pub(crate) fn all(&self) -> Vec<Arc<T>> {
        lock(&self.terms).clone()
    }

    /// The first that this holds of.
    pub(crate) fn find(&self, holds: impl Fn(&T) -> bool) -> Option<Arc<T>> {
        lock(&self.terms).iter().find(|term| holds(term)).cloned()
    }

    /// Goes on at the next agent, which begins as it is told to, unless another thread does before.
    pub(crate) fn go_on(
        &self,
        py: Python<'_>,
        gone: &Arc<T>,
        lost: Lost,
        begin: impl Fn(&T) + Sync,
    ) -> PyResult<()> {
        loop {
            // It has just gone; and one that goes again and again shall not keep a processor busy.
            py.detach(|| thread::park_timeout(GLANCE));
            py.check_signals()?;
            if Instant::now() >= lost.since + PATIENCE {
                return Err(Error::Lost { what: self.what.clone(), waited: PATIENCE }.into());
            }
            if py.detach(|| self.try_next(gone, &begin))? {
                return Ok(());
            }
        }
    }

    /// What an agent said.
    pub(crate) fn failed(&self, source: handoff::Error) -> Error {
        Error::Handoff { what: self.what.clone(), source }
    }

    fn try_next(&self, gone: &Arc<T>, begin: &impl Fn(&T)) -> Result<bool, Error> {
        let mut next = lock(&self.next);
        if !Arc::ptr_eq(&self.latest(), gone) {
            return Ok(true);
        }
        let opening = next.get_or_insert_with(|| gone.reopen());
        let outcome = opening.wait(GLANCE);
        let ended = !matches!(outcome, Ok(None));
        if ended {
            *next = None;
        }
        if let Some(open) = outcome.map_err(|source| self.failed(source))? {
            let term = Arc::new(T::new(open));
            begin(&term);
            let mut terms = lock(&self.terms);
            // Agents that brought nothing need not be remembered.
            terms.retain(|term| term.is_of_use());
            terms.push(term);
        }
        Ok(ended)
    }
}

/// Positions as ranges, in their order.
pub(crate) fn ranges(positions: impl IntoIterator<Item = usize>) -> Vec<std::ops::Range<usize>> {
    let mut ranges: Vec<std::ops::Range<usize>> = Vec::new();
    for position in positions {
        match ranges.last_mut() {
            Some(last) if last.end == position => last.end += 1,
            _ => ranges.push(position..position + 1),
        }
    }
    ranges
}

/// What is behind these locks is whole at all times, so a panic elsewhere does no harm.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
