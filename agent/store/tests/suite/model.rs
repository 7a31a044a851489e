//! Random operations against a model of what was acknowledged, with crashes between and within them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use weightd_store::{Config, PartialBlob, SnapshotUse, Store, StoreError, io::PowerLossEngine};

use crate::common::{
    TWO_CHUNKS, Thing, aligned, assert_sound, assert_whole, config, in_memory, on_disk, open, open_losing,
    plain, snapshot,
};

/// Which blobs each snapshot consists of.
const SNAPSHOTS: [&[usize]; 4] = [&[0, 2], &[0, 1, 3], &[2, 3], &[4]];
const QUOTA: u64 = 40 << 20;

fn universe() -> Vec<Arc<Thing>> {
    let mut things = vec![plain("tiny", 100), plain("empty", 0), plain("two", TWO_CHUNKS)];
    things.extend([aligned("even.safetensors", 9 << 20), plain("small", 70_000)]);
    things
}

/// What the store has acknowledged, and must still hold after any crash.
#[derive(Default)]
struct Acknowledged {
    recorded: BTreeSet<(usize, usize)>,
    written: BTreeSet<(usize, usize)>,
    finished: BTreeSet<usize>,
    published: BTreeSet<usize>,
    pinned: BTreeMap<usize, bool>,
}

struct Run {
    things: Vec<Arc<Thing>>,
    store: Store,
    random: fastrand::Rng,
    open: BTreeMap<usize, Arc<PartialBlob>>,
    holds: BTreeMap<usize, SnapshotUse>,
    known: Acknowledged,
    context: String,
}

impl Run {
    fn of(&self, at: usize) -> Vec<&Arc<Thing>> {
        SNAPSHOTS[at].iter().map(|&blob| &self.things[blob]).collect()
    }

    fn key(&self, at: usize) -> weightd_types::SnapshotKey {
        snapshot(&self.of(at)).key()
    }

    /// One operation. What it takes away is struck out beforehand, because it may happen though it is not acknowledged.
    async fn step(&mut self) -> Result<(), StoreError> {
        let (blob, at) = (self.random.usize(..self.things.len()), self.random.usize(..SNAPSHOTS.len()));
        match self.random.u8(..20) {
            0..7 => self.write(blob).await,
            7 => self.checkpoint().await,
            8..11 => self.finish(blob).await,
            11..14 => self.publish(at).await,
            14 => self.hold(at).await,
            15 => self.pin(at).await,
            16 => self.store.touch(self.key(at)).await,
            17 => self.remove(at).await,
            18 => self.collect().await,
            _ => self.reserve().await,
        }
    }

    async fn hold(&mut self, at: usize) -> Result<(), StoreError> {
        if self.holds.remove(&at).is_none() {
            let hold = self.store.expect(snapshot(&self.of(at))).await?;
            self.holds.insert(at, hold);
        }
        Ok(())
    }

    async fn partial(&mut self, blob: usize) -> Result<Option<Arc<PartialBlob>>, StoreError> {
        if let Some(partial) = self.open.get(&blob) {
            return Ok(Some(Arc::clone(partial)));
        }
        // Blobs are fetched for snapshots that someone holds, or an eviction may take them.
        if self.store.has_blob(&self.things[blob].key()) || !self.is_held(blob) {
            return Ok(None);
        }
        let promise = self.store.reserve(0).await?;
        let partial = self.store.begin(self.things[blob].wanted.clone(), &promise).await?;
        self.open.insert(blob, Arc::clone(&partial));
        Ok(Some(partial))
    }

    fn is_held(&self, blob: usize) -> bool {
        self.holds.keys().any(|&at| SNAPSHOTS[at].contains(&blob))
    }

    async fn write(&mut self, blob: usize) -> Result<(), StoreError> {
        let Some(partial) = self.partial(blob).await? else { return Ok(()) };
        for at in 0..self.things[blob].pieces() {
            if !partial.has_piece(at) {
                self.things[blob].write(&self.store, &partial, at).await?;
                self.known.written.insert((blob, at));
                break;
            }
        }
        Ok(())
    }

    async fn checkpoint(&mut self) -> Result<(), StoreError> {
        self.store.checkpoint().await?;
        let written = &self.known.written;
        let is_recorded = |(blob, piece): &&(usize, usize)| {
            let placement = &self.things[*blob].wanted.placement;
            let chunk = placement.pieces_of_chunk(placement.pieces()[*piece].chunk);
            // Blobs of one chunk are fetched again.
            placement.chunk_count() > 1
                && chunk.iter().all(|&piece| written.contains(&(*blob, piece as usize)))
        };
        self.known.recorded.extend(written.iter().filter(is_recorded));
        Ok(())
    }

    async fn finish(&mut self, blob: usize) -> Result<(), StoreError> {
        let Some(partial) = self.partial(blob).await? else { return Ok(()) };
        for at in 0..self.things[blob].pieces() {
            if !partial.has_piece(at) {
                self.things[blob].write(&self.store, &partial, at).await?;
            }
        }
        self.open.remove(&blob);
        self.store.finish(partial).await?;
        self.known.recorded.retain(|(other, _)| *other != blob);
        self.known.written.retain(|(other, _)| *other != blob);
        self.known.finished.insert(blob);
        Ok(())
    }

    async fn publish(&mut self, at: usize) -> Result<(), StoreError> {
        if !self.holds.contains_key(&at) {
            self.hold(at).await?;
        }
        for &blob in SNAPSHOTS[at] {
            self.finish(blob).await?;
        }
        self.store.publish(snapshot(&self.of(at))).await?;
        self.known.published.insert(at);
        Ok(())
    }

    async fn pin(&mut self, at: usize) -> Result<(), StoreError> {
        let pinned = self.random.bool();
        self.known.pinned.remove(&at);
        match self.store.set_pinned(self.key(at), pinned).await {
            Err(StoreError::NotFound { .. }) => Ok(()),
            other => {
                other?;
                self.known.pinned.insert(at, pinned);
                Ok(())
            }
        }
    }

    /// Strikes out what an operation may take that spares what is held or, unless forced, pinned.
    fn may_lose(&mut self, which: impl Fn(usize) -> bool) {
        let going: Vec<_> =
            (0..SNAPSHOTS.len()).filter(|at| which(*at) && !self.holds.contains_key(at)).collect();
        for at in &going {
            self.known.published.remove(at);
            self.known.pinned.remove(at);
        }
        let stays = |blob: usize| {
            (0..SNAPSHOTS.len()).any(|at| {
                let there = self.store.snapshot(&self.key(at)).is_some();
                !going.contains(&at) && there && SNAPSHOTS[at].contains(&blob)
            })
        };
        let lost: Vec<_> = (0..self.things.len()).filter(|blob| !stays(*blob)).collect();
        self.known.finished.retain(|blob| !lost.contains(blob));
        self.known.recorded.retain(|(blob, _)| !lost.contains(blob));
    }

    async fn remove(&mut self, at: usize) -> Result<(), StoreError> {
        self.may_lose(|other| other == at);
        match self.store.remove(&self.key(at).to_string(), true).await {
            Err(StoreError::NotFound { .. } | StoreError::InUse { .. }) => Ok(()),
            other => other.map(drop),
        }
    }

    fn is_pinned(&self, at: usize) -> bool {
        self.known.pinned.get(&at) == Some(&true)
    }

    async fn collect(&mut self) -> Result<(), StoreError> {
        let pinned: BTreeSet<_> = (0..SNAPSHOTS.len()).filter(|at| self.is_pinned(*at)).collect();
        let published = self.known.published.clone();
        self.may_lose(|at| !pinned.contains(&at) && !published.contains(&at));
        self.store.collect_garbage(true).await?;
        self.after_eviction(&pinned).await;
        Ok(())
    }

    async fn reserve(&mut self) -> Result<(), StoreError> {
        let pinned: BTreeSet<_> = (0..SNAPSHOTS.len()).filter(|at| self.is_pinned(*at)).collect();
        self.may_lose(|at| !pinned.contains(&at));
        let bytes = self.random.u64(..30 << 20);
        match self.store.reserve(bytes).await {
            Ok(promise) => {
                let usage = self.store.usage().await?;
                assert!(usage.used + usage.reserved <= QUOTA, "{}: {usage:?} for {bytes}", self.context);
                drop(promise);
            }
            Err(StoreError::Full { .. }) => {}
            Err(error) => return Err(error),
        }
        self.after_eviction(&pinned).await;
        Ok(())
    }

    /// What is pinned or held is where it was.
    async fn after_eviction(&self, pinned: &BTreeSet<usize>) {
        for at in self.known.published.iter().filter(|at| pinned.contains(at) || self.holds.contains_key(at))
        {
            assert_whole(&self.store, &self.of(*at), &self.context).await;
        }
    }

    /// After a crash: all that was acknowledged is there, and all that is there is right.
    async fn check(&mut self) {
        for (at, things) in SNAPSHOTS.iter().enumerate().map(|(at, _)| (at, self.of(at))) {
            if let Some(record) = self.store.snapshot(&self.key(at)).filter(|record| record.complete) {
                assert_whole(&self.store, &things, &self.context).await;
                let pinned = self.known.pinned.get(&at).copied();
                assert!(pinned.is_none_or(|pinned| pinned == record.pinned), "{}: pin of {at}", self.context);
            } else {
                assert!(!self.known.published.contains(&at), "{}: snapshot {at} was published", self.context);
            }
        }
        for (blob, thing) in self.things.iter().enumerate() {
            if self.store.has_blob(&thing.key()) {
                assert_sound(&self.store, thing, &self.context).await;
            } else {
                assert!(!self.known.finished.contains(&blob), "{}: blob {blob} was finished", self.context);
                self.check_partial(blob, thing).await;
            }
        }
    }

    async fn check_partial(&self, blob: usize, thing: &Thing) {
        let promise = self.store.reserve(0).await.unwrap();
        let partial = self.store.begin(thing.wanted.clone(), &promise).await.unwrap();
        for at in 0..thing.pieces() {
            if !partial.has_piece(at) {
                assert!(
                    !self.known.recorded.contains(&(blob, at)),
                    "{}: piece {at} of {blob} was recorded",
                    self.context
                );
                continue;
            }
            let (buffer, within) = partial.read_piece(at, self.store.pool().acquire().await).await.unwrap();
            assert!(
                buffer[within] == *thing.piece(at),
                "{}: piece {at} of {blob} has other bytes",
                self.context
            );
        }
    }
}

/// Random operations up to a crash, then the checks; twice, so that recovery itself is started from what it left.
async fn case(seed: u64, config: &Config, things: &[Arc<Thing>], loses: bool) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut known = Acknowledged::default();
    for round in 0..2 {
        let context = format!("seed {seed}, round {round}");
        let engine = loses.then(|| open_losing(config));
        let (engine, store) = match engine {
            Some((engine, store)) => (Some(engine), store.unwrap()),
            None => (None, open(config)),
        };
        let (holds, open) = (BTreeMap::new(), BTreeMap::new());
        let mut run =
            Run { things: things.to_vec(), store, random: random.fork(), open, holds, known, context };
        if round == 1 {
            run.check().await;
            // Checking took up what was begun; pieces that were only written are as good as missing.
            run.known.recorded.clear();
        }
        run.known.written.clear();
        if let Some(engine) = &engine {
            engine.cut_power_after(run.random.u64(1..90), seed ^ round);
        }
        for _ in 0..14 {
            let outcome = run.step().await;
            if engine.as_ref().is_some_and(PowerLossEngine::is_cut) {
                break;
            }
            outcome.unwrap_or_else(|error| panic!("{}: {error}", run.context));
        }
        if let Some(engine) = engine.filter(|engine| !engine.is_cut()) {
            engine.power_cut(seed ^ round).unwrap();
        }
        known = run.known;
    }
    let store = if loses { open_losing(config).1.unwrap() } else { open(config) };
    let (holds, open) = (BTreeMap::new(), BTreeMap::new());
    let mut last = Run {
        things: things.to_vec(),
        store,
        random,
        open,
        holds,
        known,
        context: format!("seed {seed}, end"),
    };
    last.check().await;
}

fn limited(directory: &std::path::Path) -> Config {
    Config { quota_bytes: Some(QUOTA), ..config(directory) }
}

/// Seeds can be given as `WEIGHTD_SEED`, to repeat what failed.
fn seeds(count: u64) -> std::ops::Range<u64> {
    match std::env::var("WEIGHTD_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..count,
    }
}

async fn cases(from: u64, count: u64) {
    let things = universe();
    for seed in seeds(count) {
        let directory = in_memory();
        case(from + seed, &limited(directory.path()), &things, true).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_with_the_power() {
    cases(0, 100).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_with_the_power_again() {
    cases(1000, 100).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_with_the_process() {
    let things = universe();
    for seed in seeds(25) {
        let directory = on_disk();
        case(seed, &limited(directory.path()), &things, false).await;
    }
}
