//! A lease of memory that all share: what one client wants of it, and hears of it.

use std::{
    collections::{HashSet, VecDeque},
    hash::Hash,
    ops::Range,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
    time::{MissedTickBehavior, interval},
};
use weightd_proto::v1::{
    HandoffAnswer, HandoffArenas, HandoffRange, HandoffWant, handoff_answer::Answer, handoff_request::Request,
};
use weightd_types::{ByteRange, SafetensorsHeader};

use super::{
    Inner,
    arrangement::Arrangement,
    model::{Found, Model},
    packets::{DESCRIPTORS, Packets},
    progress::Progress,
    refusal::Refusal,
    resident::{Place, Resident},
    residents::Wanted,
    serve::{DEFECT, End, hear, introduce, say},
    table::{Tensors, number},
    trust::Trust,
};
use crate::{
    reading::{Target, chunks_of},
    shown::Condition,
};

/// Chunks that are brought for a lease at once: as many as a disk is asked for at once, half as many that come next and are with
/// the disk as soon as those have come, and few enough that what a client wants next comes next.
const AT_ONCE: usize = 48;

/// Files of a client that are preferred at once.
const PREFERRED: usize = 2;
/// How often it is said again which files a client waits for.
const PREFER_AGAIN: Duration = Duration::from_secs(1);

/// A client's lease.
pub(crate) struct Lease {
    model: Model,
    residents: Vec<Arc<Resident>>,
    tensors: Arc<Tensors>,
    progress: Progress,
    /// Tensors that the client wants before others, by their positions in the table.
    wanted: VecDeque<u32>,
    /// What is brought now.
    current: Option<Run>,
    /// What is brought when nothing is wanted; empty when nothing else shall be.
    rest: VecDeque<Run>,
    loads: JoinSet<Load>,
    /// How many of them the client waits for.
    awaited: usize,
    /// Arenas of files that the client waits for until they are known to be what the origin has, in its order.
    whole: VecDeque<usize>,
}

/// Whether the client waited for a chunk, and how it came.
type Load = (bool, Result<(), String>);

/// Chunks of an arena that are brought one after the other.
struct Run {
    arena: usize,
    chunks: Range<u32>,
    /// What the client waits for of the file, if it does.
    awaited: Option<ByteRange>,
}

impl Lease {
    /// Leases a model, all of which is brought, or only what is wanted.
    pub(crate) async fn open(model: Model, wanted_only: bool) -> Result<Self, Refusal> {
        let found = model.look().await?;
        // Before any memory is made: what cannot be cut is refused.
        let tensors = Tensors::new(&model, &found.iter().map(Found::header).collect::<Vec<_>>())?;
        let wanted = found.into_iter().zip(&model.blobs).map(|(found, entry)| match found {
            Found::Resident(resident) => Wanted::Here(resident),
            Found::Header(header, bytes) => {
                let arrangement = Arrangement::of(&header, bytes);
                Wanted::Missing { blob: entry.blob, header, arrangement }
            }
        });
        let source = model.manifest.source.to_string();
        let residents = model.inner.residents.lease(wanted.collect(), &source).await?;
        let tensors = Arc::new(tensors);
        let progress = Progress::new(Arc::clone(&tensors), &model.files, &residents);
        let (wanted, current, loads) = (VecDeque::new(), None, JoinSet::new());
        let (rest, whole) = (VecDeque::new(), VecDeque::new());
        let mut lease =
            Self { model, residents, tensors, progress, wanted, current, rest, loads, awaited: 0, whole };
        if !wanted_only && lease.tensors.are_whole() {
            let arenas = lease.residents.iter().enumerate();
            let run = |(arena, of): (usize, &Arc<Resident>)| Run {
                arena,
                chunks: 0..of.arena().arrangement().chunk_count(),
                awaited: None,
            };
            lease.rest = arenas.map(run).collect();
            lease.provide();
        } else if !wanted_only {
            lease.rest = (0..lease.tensors.count()).map(|position| lease.run_of(position, false)).collect();
        }
        Ok(lease)
    }

    pub(crate) fn model(&self) -> &Model {
        &self.model
    }

    /// Has the memory of all arenas provided ahead of what fills it.
    fn provide(&self) {
        let arenas: Vec<_> = self.residents.iter().map(|resident| Arc::downgrade(resident.arena())).collect();
        tokio::spawn(async move {
            for arena in arenas {
                // Who needs it and does not get it says so.
                let Some(arena) = arena.upgrade() else { return };
                let _ = arena.memory().provide_all().await;
            }
        });
    }

    /// Tells the client what there is, and from then on what has come, and does as it wants.
    pub(crate) async fn go_on(&mut self, packets: &Packets) -> Result<(), End> {
        let changed = Arc::clone(&self.model.inner.residents.changed);
        let mut ready = self.progress.news();
        let mut preferring = interval(PREFER_AGAIN);
        preferring.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.introduce(packets).await?;
        if self.progress.is_complete() {
            // Who was told so knows.
            ready.clear();
        }
        loop {
            // Made before looking, so that nothing is missed in between.
            let mut news = std::pin::pin!(changed.notified());
            news.as_mut().enable();
            self.check()?;
            ready.extend(self.progress.news());
            for ready in ready.drain(..) {
                say(packets, Answer::Ready(ready)).await?;
            }
            self.bring();
            tokio::select! {
                request = hear(packets) => match request? {
                    Some(request) => self.take(request)?,
                    None => return Ok(()),
                },
                Some(loaded) = self.loads.join_next(), if !self.loads.is_empty() => self.loaded(loaded)?,
                _ = self.model.condition.changed() => {}
                // What was to bring them may have failed since.
                _ = preferring.tick(), if !self.whole.is_empty() => self.prefer(),
                () = news => {}
            }
        }
    }

    /// Brings everything, for nobody. Ends when all of it is known to be right.
    pub(crate) async fn fill(&mut self) -> Result<(), Refusal> {
        let changed = Arc::clone(&self.model.inner.residents.changed);
        loop {
            let mut news = std::pin::pin!(changed.notified());
            news.as_mut().enable();
            self.check()?;
            drop(self.progress.news());
            if self.progress.is_complete() {
                return Ok(());
            }
            self.bring();
            tokio::select! {
                Some(loaded) = self.loads.join_next(), if !self.loads.is_empty() => self.loaded(loaded)?,
                _ = self.model.condition.changed() => {}
                () = news => {}
            }
        }
    }

    /// Whether the lease can go on.
    fn check(&mut self) -> Result<(), Refusal> {
        if let Some((file, why)) = self.progress.wrong() {
            return Err(self.model.wrong(file, &why));
        }
        self.model.check_condition()
    }

    fn loaded(&mut self, loaded: Result<Load, JoinError>) -> Result<(), Refusal> {
        let (was_awaited, outcome) = loaded.map_err(|_| self.model.unavailable(DEFECT))?;
        self.awaited -= usize::from(was_awaited);
        let Err(why) = outcome else { return Ok(()) };
        // What is wrong with the model says more.
        self.check()?;
        Err(self.model.unavailable(&why))
    }

    async fn introduce(&self, packets: &Packets) -> Result<(), End> {
        let place = |arena: usize, byte| self.residents[arena].arena().arrangement().place_of(byte);
        let (table, table_bytes) =
            self.tensors.table(&self.model, &headers(&self.residents), Some(&place))?;
        let arenas = number(self.residents.len());
        introduce(packets, &self.model, &table, table_bytes, arenas, self.progress.is_complete()).await?;
        let mut first = 0;
        for residents in self.residents.chunks(DESCRIPTORS) {
            let lengths = residents.iter().map(|resident| resident.arena().arrangement().arena_bytes());
            let arenas = HandoffArenas { first, lengths: lengths.collect() };
            let beside: Vec<_> =
                residents.iter().map(|resident| resident.arena().memory().descriptor()).collect();
            packets.send(&HandoffAnswer { answer: Some(Answer::Arenas(arenas)) }, &beside).await?;
            first += number(residents.len());
        }
        Ok(())
    }

    fn take(&mut self, request: Request) -> Result<(), Refusal> {
        match request {
            Request::Want(want) => {
                let wanted = positions(&want, &self.model, &self.tensors)?;
                if want.verified {
                    self.prefer_files_of(&wanted);
                }
                // What is wanted last is waited for now.
                if let Some(current) = self.current.take() {
                    self.rest.push_front(current);
                }
                put_first(&mut self.wanted, wanted);
                Ok(())
            }
            Request::Open(_) => Err(Refusal::usage("a lease is opened once")),
            Request::Release(_) => Err(Refusal::usage("only what lies in a ring is released")),
        }
    }

    /// Has the files of tensors fetched before others, all of them: only of a whole file the origin says what it is.
    fn prefer_files_of(&mut self, tensors: &[u32]) {
        let mut is_known = HashSet::new();
        let arenas = tensors.iter().map(|&position| self.tensors.needed(position).blob);
        put_first(&mut self.whole, arenas.filter(|&arena| is_known.insert(arena)).collect());
        self.prefer();
    }

    /// Says which files the client waits for first: no more than keep the origin busy while one ends and the next begins, because
    /// what was said is not taken back.
    fn prefer(&mut self) {
        let residents = &self.residents;
        self.whole.retain(|&arena| residents[arena].trust() == Trust::Provisional);
        for &arena in self.whole.iter().take(PREFERRED) {
            let blob = residents[arena].blob();
            self.model.inner.chunks.demands().prefer(self.model.manifest.key(), blob);
        }
    }

    /// What is needed of a tensor.
    fn run_of(&self, position: u32, is_awaited: bool) -> Run {
        let needed = self.tensors.needed(position);
        let awaited = is_awaited.then_some(needed.span);
        Run { arena: needed.blob, chunks: chunks_of(needed.span), awaited }
    }

    /// Whether more may be brought at once. What the client waits for does not wait for what nobody does.
    fn has_room(&self) -> bool {
        let is_awaited = |run: &Run| run.awaited.is_some();
        let is_next_awaited = match &self.current {
            Some(run) => is_awaited(run),
            None => !self.wanted.is_empty() || self.rest.front().is_some_and(is_awaited),
        };
        // Behind what nobody waits for, what someone does has half as much room again: others read from the same disk.
        let most = if is_next_awaited { AT_ONCE + AT_ONCE / 2 } else { AT_ONCE };
        self.awaited < AT_ONCE && self.loads.len() < most
    }

    /// Begins to bring what is next, as much at once as helps.
    fn bring(&mut self) {
        while self.has_room() {
            let Some((arena, chunk, awaited)) = self.next() else { return };
            let (inner, resident) = (Arc::clone(&self.model.inner), Arc::clone(&self.residents[arena]));
            let (snapshot, blob) = (self.model.manifest.key(), resident.blob());
            let range = awaited.unwrap_or_else(|| resident.arena().arrangement().chunk_range(chunk));
            let is_awaited = awaited.is_some();
            self.awaited += usize::from(is_awaited);
            let target = Target { snapshot, blob, chunk, range, is_awaited };
            let condition = self.model.condition.clone();
            self.loads.spawn(async move { (is_awaited, inner.bring(target, &resident, condition).await) });
        }
    }

    /// The next chunk that is missing: its arena, its number, and what the client waits for of its file.
    fn next(&mut self) -> Option<(usize, u32, Option<ByteRange>)> {
        loop {
            if self.current.is_none() {
                let wanted = self.wanted.pop_front().map(|position| self.run_of(position, true));
                self.current = wanted.or_else(|| self.rest.pop_front());
            }
            let run = self.current.as_mut()?;
            match run.chunks.next() {
                Some(chunk) if self.residents[run.arena].is_here(chunk) => {}
                Some(chunk) => return Some((run.arena, chunk, run.awaited)),
                None => self.current = None,
            }
        }
    }
}

/// Positions of tensors that a client wants.
pub(crate) fn positions(want: &HandoffWant, model: &Model, tensors: &Tensors) -> Result<Vec<u32>, Refusal> {
    let there = tensors.count();
    let mut wanted: Vec<u32> = Vec::new();
    for &HandoffRange { start, end } in &want.tensors {
        if start > end || end > there {
            return Err(Refusal::usage(
                model.about(&format!("the tensors {start} to {end} were wanted, and there are {there}")),
            ));
        }
        // Who wants the same again and again gets it once.
        let room = (2 * there as usize).saturating_sub(wanted.len());
        wanted.extend((start..end).take(room));
    }
    Ok(wanted)
}

/// Puts what is wanted before what was wanted earlier, which is remembered once.
pub(crate) fn put_first<T: Copy + Eq + Hash>(wanted: &mut VecDeque<T>, first: Vec<T>) {
    let is_news: HashSet<T> = first.iter().copied().collect();
    wanted.retain(|known| !is_news.contains(known));
    for of in first.into_iter().rev() {
        wanted.push_front(of);
    }
}

fn headers(residents: &[Arc<Resident>]) -> Vec<&SafetensorsHeader> {
    residents.iter().map(|resident| resident.header()).collect()
}

impl Inner {
    /// Brings a chunk to its place, from wherever it is nearest.
    async fn bring(
        &self,
        target: Target,
        resident: &Resident,
        condition: watch::Receiver<Condition>,
    ) -> Result<(), String> {
        let (arena, chunk) = (resident.arena(), target.chunk);
        if let Err(why) = arena.provide(chunk).await {
            // Whoever comes next gets another, which may fare better.
            self.residents.give_up(resident);
            return Err(why);
        }
        let load = async {
            if arena.arrangement().straight(chunk).is_some() {
                let place = Place { resident, chunk, is_awaited: target.is_awaited };
                let loaded = self.chunks.load(condition, target, &place).await?;
                loaded.buffer.landed(loaded.crc);
            } else {
                let loaded = self.chunks.load(condition, target, &self.cache).await?;
                let claim = resident.claim(chunk).await;
                claim.put(&loaded.buffer);
                claim.landed(loaded.crc);
            }
            Ok(())
        };
        tokio::select! {
            biased;
            () = resident.until_here(chunk) => Ok(()),
            loaded = load => loaded,
        }
    }
}
