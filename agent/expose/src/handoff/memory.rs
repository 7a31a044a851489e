//! Who makes the memory of arenas, and who pays for it: the keeper where there is one, else the agent.
#![allow(unsafe_code, reason = "memory is kept from being swapped by its address")]

use std::{
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use memmap2::{Advice, MmapRaw};
use rustix::{
    fs::{MemfdFlags, ftruncate, memfd_create},
    mm::mlock,
};
use weightd_types::display_bytes;

use crate::{
    ExposeError,
    free_memory::FreeMemory,
    keeper::{Keeper, NoRoom},
    reading::to_usize,
};

/// Who makes arenas. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Provider {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    keeper: Option<KeeperAt>,
    /// Most bytes of arenas; the keeper may have a limit of its own beside it.
    limit: Option<u64>,
    /// For arenas that are the agent's own.
    free: FreeMemory,
    lock_limit: u64,
    locked: AtomicU64,
}

/// The keeper, connected when it is needed. One that went away is connected to again.
#[derive(Debug)]
struct KeeperAt {
    path: PathBuf,
    connection: Mutex<Option<Keeper>>,
}

/// Bytes of arenas.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// Of all there are.
    pub(crate) bytes: u64,
    /// Those of which the memory is still to be provided.
    pub(crate) promised: u64,
}

impl Provider {
    /// `limit` bounds all arenas, `lock_limit` what of them is kept from being swapped.
    pub(crate) fn new(keeper: Option<PathBuf>, limit: Option<u64>, lock_limit: u64) -> Self {
        let keeper = keeper.map(|path| KeeperAt { path, connection: Mutex::default() });
        let free = FreeMemory::new("/", None);
        Self { inner: Arc::new(Inner { keeper, limit, free, lock_limit, locked: AtomicU64::new(0) }) }
    }

    /// Makes a file in memory of so many bytes beside those there are, or says why there is no room. Blocks.
    pub(crate) fn make(
        &self,
        name: &str,
        bytes: u64,
        there: Usage,
    ) -> Result<Result<OwnedFd, NoRoom>, ExposeError> {
        let no_room = |limit, why| Ok(Err(NoRoom { limit, used: there.bytes, why }));
        if let Some(limit) = self.inner.limit
            && there.bytes.saturating_add(bytes) > limit
        {
            return no_room(limit, "handoff.resident_limit is reached".to_owned());
        }
        if let Some(keeper) = &self.inner.keeper {
            return keeper.ask(|keeper| keeper.make_arena(name, bytes));
        }
        if let Err(why) = self.inner.free.has_room_for(there.promised.saturating_add(bytes)) {
            return no_room(self.inner.limit.unwrap_or(u64::MAX), why);
        }
        let made = memfd_create("weightd-arena", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .and_then(|memory| ftruncate(&memory, bytes).map(|()| memory));
        let failed = |error| format!("no file in memory of {} can be made: {error}", display_bytes(bytes));
        made.map(Ok).map_err(|error| ExposeError::Memory { problem: failed(error) })
    }

    /// Has the memory of a part of an arena provided, and keeps it from being swapped as far as that may be. Says how much of
    /// it is.
    pub(crate) async fn provide(
        &self,
        name: &str,
        mapping: &Arc<MmapRaw>,
        from: u64,
        bytes: u64,
    ) -> Result<u64, String> {
        let (this, name, mapping) = (self.clone(), name.to_owned(), Arc::clone(mapping));
        let work = move || this.provide_now(&name, &mapping, from, bytes);
        let done = tokio::task::spawn_blocking(work).await;
        done.unwrap_or_else(|_| Err("the agent is shutting down".to_owned()))
    }

    fn provide_now(&self, name: &str, mapping: &MmapRaw, from: u64, bytes: u64) -> Result<u64, String> {
        if let Some(keeper) = &self.inner.keeper {
            // Whoever touches it first pays for it.
            keeper.ask(|keeper| keeper.allocate(name, from, bytes)).map_err(|error| error.to_string())?;
        }
        let (start, len) = (to_usize(from), to_usize(bytes));
        let populated = mapping.advise_range(Advice::PopulateWrite, start, len);
        populated.map_err(|error| format!("the memory of {name} cannot be had: {error}"))?;
        Ok(self.keep_from_swap(mapping, start, len))
    }

    /// Keeps a part of an arena from being swapped, if the limit allows it. Says how many bytes are.
    pub(crate) fn keep_from_swap(&self, mapping: &MmapRaw, start: usize, len: usize) -> u64 {
        let locked = self.inner.locked.fetch_add(len as u64, Ordering::Relaxed);
        if locked.saturating_add(len as u64) > self.inner.lock_limit {
            self.unlocked(len as u64);
            return 0;
        }
        // SAFETY: the part lies within the mapping; locking changes nothing that anyone could see.
        let outcome = unsafe { mlock(mapping.as_mut_ptr().wrapping_add(start).cast(), len) };
        if let Err(error) = outcome {
            tracing::debug!(%error, "memory for tensors may be swapped; raising RLIMIT_MEMLOCK would help");
            self.unlocked(len as u64);
            return 0;
        }
        len as u64
    }

    /// Says that so many bytes are not kept from being swapped any more.
    pub(crate) fn unlocked(&self, bytes: u64) {
        let _ = self
            .inner
            .locked
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |locked| Some(locked.saturating_sub(bytes)));
    }

    /// Whether the node has no memory to spare.
    pub(crate) fn is_short(&self) -> bool {
        let free = &self.inner.free;
        // What the keeper has is its own cgroup's to pay for, and nothing of the agent's.
        let room =
            if self.inner.keeper.is_some() { free.machine_has_room_for(0) } else { free.has_room_for(0) };
        room.is_err()
    }

    /// Most bytes of arenas, where there is a bound.
    pub(crate) fn limit(&self) -> Result<Option<u64>, ExposeError> {
        let keepers = self.with_keeper(Keeper::arena_limit)?;
        Ok([self.inner.limit, keepers].into_iter().flatten().min())
    }

    /// Does something with the keeper, if there is one.
    pub(crate) fn with_keeper<T>(
        &self,
        ask: impl Fn(&Keeper) -> Result<T, ExposeError>,
    ) -> Result<Option<T>, ExposeError> {
        self.inner.keeper.as_ref().map(|keeper| keeper.ask(ask)).transpose()
    }
}

impl KeeperAt {
    fn ask<T>(&self, ask: impl Fn(&Keeper) -> Result<T, ExposeError>) -> Result<T, ExposeError> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if connection.as_ref().is_none_or(Keeper::is_gone) {
            *connection = Some(Keeper::connect(&self.path, Duration::ZERO)?);
        }
        let outcome = ask(connection.as_ref().expect("it was just connected"));
        if matches!(outcome, Err(ExposeError::Keeper { .. })) {
            // An answer that comes too late must not be taken for that of the next question.
            *connection = None;
        }
        outcome
    }
}
