//! An open session: a lease, and what is known of its tensors.

use std::{collections::HashSet, ops::Range, path::Path, sync::Arc, time::Duration};

use weightd_proto::v1::{HandoffOpened, HandoffRange, HandoffWant, handoff_request::Request as Said};

use super::{
    Arena, Error, Opening, Request, Table,
    connection::after,
    line::{Line, PATIENCE, RANGES},
    opening::{Outcome, Parts},
    readiness::Readiness,
};

/// A lease of the tensors of a snapshot. It ends when this is dropped, so this must live as long as any of the memory.
///
/// Threads may share it. A process that is forked off cannot go on with it, but resume; what was ready stays so.
#[derive(Debug)]
pub struct Session {
    line: Line<Readiness>,
    request: Request,
    snapshot: String,
    source: String,
    table: Arc<Table>,
    arenas: Vec<Arena>,
}

impl Outcome for Session {
    fn of(parts: Parts) -> Result<Self, Error> {
        let table = parts.table()?;
        let Parts { connection, request, opened, arenas, .. } = parts;
        let line = Line::new(connection, Readiness::new(table.tensors().len(), opened.complete));
        let HandoffOpened { snapshot, source, .. } = opened;
        Ok(Self { line, request, snapshot, source, table, arenas })
    }
}

impl Session {
    /// Name of the snapshot: `<id>.<layout>`.
    pub fn snapshot(&self) -> &str {
        &self.snapshot
    }

    /// The URI that the snapshot came from.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The socket that it was opened at.
    pub fn socket(&self) -> &Path {
        self.line.socket()
    }

    /// What was asked for.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Which tensors there are.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// How many arenas there are.
    pub fn arenas(&self) -> usize {
        self.arenas.len()
    }

    /// The memory of that number.
    ///
    /// # Panics
    /// When there is none. Those that a tensor of the table with bytes names are there.
    pub fn arena(&self, number: usize) -> &Arena {
        &self.arenas[number]
    }

    /// Whether a tensor may be used, with all that lies on its pages. Only of tensors that were asked for the agent is
    /// sure to speak.
    ///
    /// # Panics
    /// When the table has no such position, as the other functions that take positions.
    pub fn is_ready(&self, position: usize, verified: bool) -> bool {
        let has = |readiness: &Readiness| self.has(readiness, position, verified);
        has(&self.line.lock().notes) || has(&self.line.caught_up().notes)
    }

    /// Whether there is any tensor so far.
    pub fn has_any(&self) -> bool {
        self.line.lock().notes.has_any() || self.line.caught_up().notes.has_any()
    }

    /// Whether every tensor is there, and known to be what the origin has.
    pub fn is_complete(&self) -> bool {
        self.line.lock().notes.is_complete() || self.line.caught_up().notes.is_complete()
    }

    /// Asks the agent to bring tensors before others, in this order: those that are not there yet, or with `verified` not
    /// known to be what the origin has.
    ///
    /// # Errors
    /// [`Error::AgentGone`] when the connection has ended; the other errors are why the agent ended it.
    pub fn want(&self, tensors: &[Range<usize>], verified: bool) -> Result<(), Error> {
        let missing = self.missing(tensors, verified);
        let say =
            |ranges: &[_]| self.line.say(&Said::Want(HandoffWant { tensors: ranges.to_vec(), verified }));
        missing.chunks(RANGES).try_for_each(say)
    }

    /// Waits until all of these are there, or `patience` is over: then it is false. Ask for them with [`Session::want`]
    /// before. Threads may wait at the same time.
    ///
    /// # Errors
    /// As of [`Session::want`].
    pub fn wait_for(
        &self,
        tensors: &[Range<usize>],
        verified: bool,
        patience: Duration,
    ) -> Result<bool, Error> {
        let mut rest = tensors.iter().cloned().flatten().peekable();
        let all = self.line.wait(after(patience), |readiness| {
            // What is there stays there, so nothing is looked at twice.
            while rest.next_if(|&position| self.has(readiness, position, verified)).is_some() {}
            rest.peek().is_none().then_some(())
        });
        Ok(all?.is_some())
    }

    /// Asks for these tensors, and waits until they are there, however long that takes.
    ///
    /// # Errors
    /// As of [`Session::want`]. After [`Error::AgentGone`], [`Session::resume`].
    pub fn wait(&self, tensors: &[Range<usize>], verified: bool) -> Result<(), Error> {
        let asked = self.want(tensors, verified);
        // What arrived before the agent ended is there.
        if self.wait_for(tensors, verified, Duration::ZERO)? {
            return Ok(());
        }
        asked?;
        while !self.wait_for(tensors, verified, PATIENCE)? {}
        Ok(())
    }

    /// Begins to open the same once more, at the next agent. The session that comes of it has the same table. Its arenas
    /// may be others: what was not complete is brought into new ones. So keep this one for the tensors that were ready here,
    /// and ask the other for the rest.
    pub fn reopen(&self) -> Opening {
        Opening::again(self.socket(), &self.request, None, &self.snapshot, &self.table)
    }

    /// Does so, and waits for the next agent, but not longer than `patience`.
    ///
    /// # Errors
    /// As of [`Opening::wait`], and the last reason why there is no session when the time is over.
    pub fn resume(&self, patience: Duration) -> Result<Self, Error> {
        let mut opening = self.reopen();
        match opening.wait(patience)? {
            Some(session) => Ok(session),
            None => Err(opening.give_up()),
        }
    }

    fn has(&self, readiness: &Readiness, position: usize, verified: bool) -> bool {
        self.table.on_pages_of(position).iter().all(|&other| readiness.has(other as usize, verified))
    }

    /// What must arrive before these tensors may be used, in their order.
    fn missing(&self, tensors: &[Range<usize>], verified: bool) -> Vec<HandoffRange> {
        let state = self.line.caught_up();
        let mut known = HashSet::new();
        let needed = tensors.iter().cloned().flatten().flat_map(|position| self.table.on_pages_of(position));
        let is_missing =
            |position: &u32| !state.notes.has(*position as usize, verified) && known.insert(*position);
        HandoffRange::joined(needed.copied().filter(is_missing))
    }
}
