//! All blobs in memory: made when someone leases them, kept for a while after that, and gone when memory is needed.

use std::{
    collections::HashMap,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tokio::{
    runtime::Handle,
    sync::Notify,
    task::JoinHandle,
    time::{Instant, sleep},
};
use weightd_store::Landing;
use weightd_types::{BlobKey, Crc32c, SafetensorsHeader, display_bytes};

use super::{
    arena::Arena,
    arrangement::{self, Arrangement},
    files::stored_header,
    lent::LentMemory,
    memory::{Provider, Usage},
    refusal::Refusal,
    resident::Resident,
    ring::Ring,
    trust::{Seen, Trust, confirm, whole},
};
use crate::{ExposeError, Metrics, keeper::NoRoom, reading::Chunks};

/// What arenas are called with the keeper, before their blob's key and what tells those of one blob apart.
const ARENA: &str = "handoff-arena/";
/// What rings are called with the keeper, before what tells them apart.
const RING: &str = "handoff-ring/";
/// What is remembered of an arena that is whole, before its name.
const NOTE: &str = "handoff-note/";
/// How long whoever finds no room waits for what is being given back.
const MOMENT: Duration = Duration::from_millis(200);
/// How often it is looked what nobody leases any more.
const LOOK: Duration = Duration::from_secs(1);

/// What the next agent needs to know of an arena that is whole and verified.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    arrangement: u32,
    chunks: Vec<Crc32c>,
}

/// All blobs in memory.
#[derive(Debug)]
pub(crate) struct Residents {
    chunks: Arc<Chunks>,
    provider: Provider,
    linger: Duration,
    metrics: Metrics,
    /// Memory is given back from threads of its own, whoever parts with it.
    runtime: Handle,
    /// How many models are brought for nobody.
    pub(crate) ahead: Arc<AtomicUsize>,
    /// Told when whoever asks finds no room beside those.
    pub(crate) pressed: Notify,
    /// Told of everything that changes.
    pub(crate) changed: Arc<Notify>,
    all: Mutex<HashMap<BlobKey, Entry>>,
    /// Bytes of each ring, by its name.
    rings: Mutex<HashMap<String, u64>>,
    /// One lease at a time makes arenas, so that two that do not fit together do not each get half.
    making: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Entry {
    resident: Arc<Resident>,
    /// Since when nobody leases it.
    idle_since: Option<Instant>,
}

/// A blob that someone wants to lease.
pub(crate) enum Wanted {
    /// It is in memory.
    Here(Arc<Resident>),
    /// It has to be brought there.
    Missing { blob: BlobKey, header: SafetensorsHeader, arrangement: Arrangement },
}

impl Wanted {
    fn missing_bytes(&self) -> u64 {
        match self {
            Self::Here(_) => 0,
            Self::Missing { arrangement, .. } => arrangement.arena_bytes(),
        }
    }
}

/// A file in memory that nobody uses yet: whoever asked for it may have gone meanwhile, and then the keeper forgets it.
struct Unclaimed {
    provider: Provider,
    name: String,
    memory: Option<OwnedFd>,
}

impl Unclaimed {
    fn claim(mut self) -> OwnedFd {
        self.memory.take().expect("it is claimed once")
    }
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        if self.memory.is_some() {
            forget(&self.provider, &self.name);
        }
    }
}

/// That the memory of a ring is kept.
#[derive(Debug)]
pub(crate) struct Kept {
    residents: Arc<Residents>,
    name: String,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.residents.rings().remove(&self.name);
        self.residents.forget(std::mem::take(&mut self.name));
        self.residents.measure();
    }
}

impl Entry {
    /// Whoever leases it has it too.
    fn is_leased(&self) -> bool {
        Arc::strong_count(&self.resident) > 1
    }
}

impl Residents {
    pub(crate) fn new(
        chunks: Arc<Chunks>,
        provider: Provider,
        linger: Duration,
        metrics: Metrics,
    ) -> Arc<Self> {
        let (changed, all, rings) = (Arc::default(), Mutex::default(), Mutex::default());
        let making = tokio::sync::Mutex::default();
        let (runtime, ahead, pressed) = (Handle::current(), Arc::default(), Notify::new());
        Arc::new(Self {
            chunks,
            provider,
            linger,
            metrics,
            runtime,
            ahead,
            pressed,
            changed,
            all,
            rings,
            making,
        })
    }

    fn all(&self) -> MutexGuard<'_, HashMap<BlobKey, Entry>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rings(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Blobs in memory for someone who leases them, made where they are not there: all of them or none. `name` is what they
    /// are together.
    pub(crate) async fn lease(
        self: &Arc<Self>,
        wanted: Vec<Wanted>,
        name: &str,
    ) -> Result<Vec<Arc<Resident>>, Refusal> {
        let _making = self.making.lock().await;
        // Someone else may have had it made meanwhile.
        let look_again = |wanted: Wanted| match wanted {
            Wanted::Missing { blob, .. } => self.known(&blob).map_or(wanted, Wanted::Here),
            Wanted::Here(_) => wanted,
        };
        let wanted: Vec<Wanted> = wanted.into_iter().map(look_again).collect();
        let missing = wanted.iter().map(Wanted::missing_bytes).sum();
        if missing > 0 {
            self.check_room(missing, name).await?;
        }
        let (mut leased, mut made) = (Vec::with_capacity(wanted.len()), Vec::new());
        for wanted in wanted {
            let (blob, header, arrangement) = match wanted {
                Wanted::Here(resident) => {
                    leased.push(resident);
                    continue;
                }
                Wanted::Missing { blob, header, arrangement } => (blob, header, arrangement),
            };
            match self.make(blob, header, arrangement, name, missing).await {
                Ok(resident) => {
                    made.push(Arc::clone(&resident));
                    leased.push(resident);
                }
                Err(refusal) => {
                    made.iter().for_each(|resident| self.give_up(resident));
                    return Err(refusal);
                }
            }
        }
        Ok(leased)
    }

    /// Makes sure that so much could fit if nothing else were there but what is leased: what would not fit for all that must
    /// not take the place of what nobody leases.
    async fn check_room(&self, missing: u64, model: &str) -> Result<(), Refusal> {
        let provider = self.provider.clone();
        let limit = blocking(move || provider.limit()).await?.map_err(|error| Refusal::of(&error))?;
        let Some(limit) = limit else { return Ok(()) };
        let used = || {
            let all = self.all();
            let leased = all.values().filter(|entry| entry.is_leased());
            let residents =
                leased.map(|entry| entry.resident.arena().arrangement().arena_bytes()).sum::<u64>();
            residents + self.rings().values().sum::<u64>()
        };
        let has_room = || missing <= limit.saturating_sub(used());
        if has_room() || self.press().await && has_room() {
            return Ok(());
        }
        let used = used();
        let why = "what is leased stays".to_owned();
        Err(no_room(model, missing, &NoRoom { limit, used, why }))
    }

    /// A blob that is in memory, whole or on its way there.
    pub(crate) fn known(&self, blob: &BlobKey) -> Option<Arc<Resident>> {
        self.all().get(blob).map(|entry| Arc::clone(&entry.resident))
    }

    async fn make(
        self: &Arc<Self>,
        blob: BlobKey,
        header: SafetensorsHeader,
        arrangement: Arrangement,
        model: &str,
        missing: u64,
    ) -> Result<Arc<Resident>, Refusal> {
        let name = name_of(&format!("{ARENA}{blob}/"));
        let memory = self.memory(&name, arrangement.arena_bytes(), model, missing).await?;
        let (provider, changed) = (self.provider.clone(), Arc::clone(&self.changed));
        let arena = Arena::new(name.clone(), arrangement, memory.claim(), provider, changed);
        let arena = arena.map_err(|error| {
            self.forget(name.clone());
            Refusal::memory(format!("{model}: {error}"))
        })?;
        let resident = Resident::new(blob, header, Arc::new(arena), Arc::clone(&self.changed));
        let resident = self.insert(resident);
        let landing = Arc::downgrade(&resident);
        self.chunks.store().land_in(blob, landing as Weak<dyn Landing>);
        let seen = Arc::downgrade(resident.arena().seen());
        tokio::spawn(Arc::clone(self).see_confirmed(blob, name, seen));
        Ok(resident)
    }

    /// A file in memory of so many bytes, for which what nobody leases goes where that is needed. `missing` is how much is
    /// needed in all.
    async fn memory(&self, name: &str, bytes: u64, model: &str, missing: u64) -> Result<Unclaimed, Refusal> {
        let mut is_last = false;
        loop {
            let (provider, name, there) = (self.provider.clone(), name.to_owned(), self.usage());
            let make = move || {
                let made = provider.make(&name, bytes, there)?;
                Ok(made.map(|memory| Unclaimed { provider, name, memory: Some(memory) }))
            };
            match blocking(make).await?.map_err(|error: ExposeError| Refusal::of(&error))? {
                Ok(memory) => return Ok(memory),
                Err(full) => match self.take_idlest() {
                    // Its memory is free only then.
                    Some(entry) => self.let_go(entry).await.map_err(|_| Refusal::stopping())?,
                    None if is_last => return Err(no_room(model, missing, &full)),
                    None => {
                        self.press().await;
                        is_last = true;
                    }
                },
            }
        }
    }

    /// Has those give up who bring models for nobody, and waits a moment, also for what is being given back. Says whether
    /// there are any.
    async fn press(&self) -> bool {
        let are_any = self.ahead.load(Ordering::Acquire) > 0;
        self.pressed.notify_waiters();
        sleep(MOMENT).await;
        are_any
    }

    /// A ring of so many bytes, for one client.
    pub(crate) async fn ring(self: &Arc<Self>, bytes: u64, model: &str) -> Result<Ring, Refusal> {
        let _making = self.making.lock().await;
        self.check_room(bytes, model).await?;
        let name = name_of(RING);
        let memory = self.memory(&name, bytes, model, bytes).await?;
        let kept = Kept { residents: Arc::clone(self), name: name.clone() };
        self.rings().insert(name.clone(), bytes);
        self.measure();
        let memory = LentMemory::new(name, bytes, memory.claim(), self.provider.clone());
        let memory = memory.map_err(|error| Refusal::memory(format!("{model}: {error}")))?;
        Ok(Ring::new(memory, kept))
    }

    fn insert(&self, resident: Resident) -> Arc<Resident> {
        let resident = Arc::new(resident);
        let entry = Entry { resident: Arc::clone(&resident), idle_since: None };
        self.all().insert(resident.blob(), entry);
        self.measure();
        resident
    }

    /// Has what is confirmed and whole kept for the next agent, and what is wrong forgotten.
    async fn see_confirmed(self: Arc<Self>, blob: BlobKey, name: String, seen: Weak<Seen>) {
        if confirm(&seen, blob, self.chunks.store()).await.is_none() {
            return;
        }
        let Some(trust) = seen.upgrade().map(|seen| seen.trust()) else { return };
        if let Trust::Wrong(why) = trust {
            // Unless there is another one of it by now.
            if self.known(&blob).is_some_and(|known| known.arena().memory().name() == name) {
                self.discard(&blob, &why);
            }
            return;
        }
        let Some(chunks) = whole(&seen).await else { return };
        let (note, provider) = (Note { arrangement: arrangement::VERSION, chunks }, self.provider.clone());
        let kept_as = format!("{NOTE}{name}");
        let kept = blocking(move || {
            provider.with_keeper(|keeper| {
                let file = keeper.note(&note)?;
                keeper.put_plain(&kept_as, &[file.as_fd()])
            })
        });
        if let Ok(Err(error)) = kept.await {
            tracing::warn!(%error, "the next agent will not find a model in memory");
        }
        // It may have gone meanwhile, and what is remembered of it has to go after it.
        if self.known(&blob).is_none_or(|known| known.arena().memory().name() != name) {
            self.forget(name);
        }
    }

    /// Takes over what an earlier agent left with the keeper: what is whole, and still in the store.
    pub(crate) async fn adopt(self: &Arc<Self>) -> Result<(), ExposeError> {
        let _making = self.making.lock().await;
        let provider = self.provider.clone();
        let own: Vec<String> = self.rings().keys().cloned().collect();
        let listed = blocking(move || {
            provider.with_keeper(|keeper| {
                let arenas = keeper.list(ARENA)?;
                // Their clients have nobody any more who fills them.
                let rings = keeper.list(RING)?.into_iter().filter(|ring| !own.contains(ring));
                rings.into_iter().try_for_each(|ring| keeper.drop_name(&ring))?;
                for note in keeper.list(NOTE)? {
                    if !arenas.iter().any(|arena| note.strip_prefix(NOTE) == Some(arena)) {
                        keeper.drop_name(&note)?;
                    }
                }
                Ok(arenas)
            })
        })
        .await;
        // When the agent ends at this moment there is nothing to take over.
        let Ok(names) = listed else { return Ok(()) };
        for name in names?.unwrap_or_default() {
            let key = name.strip_prefix(ARENA).and_then(|rest| rest.split('/').next());
            let blob = key.and_then(|key| key.parse::<BlobKey>().ok());
            let is_known = blob.is_some_and(|blob| self.known(&blob).is_some());
            let adopted = match blob.filter(|_| !is_known) {
                Some(blob) => self.adopt_one(blob, &name).await,
                None => None,
            };
            let is_ours = || self.all().values().any(|entry| entry.resident.arena().memory().name() == name);
            match adopted {
                Some(resident) => drop(self.insert(resident)),
                None if is_ours() => {}
                None => self.forget(name),
            }
        }
        Ok(())
    }

    async fn adopt_one(&self, blob: BlobKey, name: &str) -> Option<Resident> {
        let stored = self.chunks.store().stored_blob(blob).await.ok()??;
        let header = stored_header(&stored, self.chunks.store()).await.ok()?;
        let (provider, name) = (self.provider.clone(), name.to_owned());
        let (bytes, confirmed) = (stored.manifest().blob_bytes, stored.manifest().chunk_crc32c.clone());
        let changed = Arc::clone(&self.changed);
        let taken = blocking(move || {
            let found = provider.with_keeper(|keeper| {
                let note = keeper.attend_to(&format!("{NOTE}{name}"))?.and_then(|mut found| found.pop());
                let note = note.map(|note| keeper.read_note::<Note>(note)).transpose()?;
                Ok((note, keeper.attend_to(&name)?.and_then(|mut found| found.pop())))
            });
            let (note, memory) = found.ok()??;
            let is_same = |note: &Note| note.arrangement == arrangement::VERSION && note.chunks == confirmed;
            let note = note.filter(is_same)?;
            let arrangement = Arrangement::of(&header, bytes);
            let arena = Arena::adopt(name, arrangement, memory?, provider, note.chunks, Arc::clone(&changed));
            let arena = Arc::new(arena.ok()?);
            Some(Resident::new(blob, header, arena, changed))
        });
        taken.await.ok()?
    }

    /// Bytes of a blob turned out to be wrong: nobody is given it from here on, and who has it hears of it.
    pub(crate) fn discard(&self, blob: &BlobKey, why: &str) {
        let Some(entry) = self.all().remove(blob) else { return };
        entry.resident.arena().seen().discard(why.into());
        drop(self.let_go(entry));
    }

    /// Nobody new is given a resident; who has it keeps it.
    pub(crate) fn give_up(&self, resident: &Resident) {
        let blob = resident.blob();
        let mut all = self.all();
        if all.get(&blob).is_none_or(|known| !std::ptr::eq(&raw const *known.resident, resident)) {
            return;
        }
        let gone = all.remove(&blob);
        drop(all);
        drop(gone.map(|entry| self.let_go(entry)));
    }

    fn usage(&self) -> Usage {
        let rings = self.rings().values().sum();
        let all = self.all();
        // Of rings it is not asked how much is there already.
        all.values().fold(Usage { bytes: rings, promised: rings }, |sum, entry| {
            let (provided, promised) = entry.resident.arena().memory().provided();
            Usage { bytes: sum.bytes + provided + promised, promised: sum.promised + promised }
        })
    }

    fn measure(&self) {
        self.metrics.resident_bytes.set(i64::try_from(self.usage().bytes).unwrap_or(i64::MAX));
    }

    /// Takes out what nobody has leased for longest.
    fn take_idlest(&self) -> Option<Entry> {
        let mut all = self.all();
        let idle = all.iter().filter(|(_, entry)| !entry.is_leased());
        let longest = idle.min_by_key(|(_, entry)| entry.idle_since.unwrap_or_else(Instant::now));
        let blob = *longest?.0;
        all.remove(&blob)
    }

    /// Parts with what was taken out. The keeper lets go of its arena; clients that have that mapped keep it. Goes on when
    /// nobody waits for it.
    fn let_go(&self, entry: Entry) -> JoinHandle<()> {
        self.chunks.close(&entry.resident.blob());
        self.measure();
        let provider = self.provider.clone();
        // The keeper is waited for, and giving memory back takes time.
        self.runtime.spawn_blocking(move || forget(&provider, entry.resident.arena().memory().name()))
    }

    /// Has the keeper forget an arena of that name, for those who do not wait for it.
    fn forget(&self, arena: String) {
        let provider = self.provider.clone();
        drop(self.runtime.spawn_blocking(move || forget(&provider, &arena)));
    }

    /// Looks after them until nobody has them: what nobody leased for long enough goes, or sooner when the node is short of memory.
    pub(crate) async fn look_after(this: Weak<Self>) {
        loop {
            sleep(LOOK).await;
            let Some(this) = this.upgrade() else { return };
            let is_short = this.provider.is_short();
            let mut gone = Vec::new();
            {
                let mut all = this.all();
                let is_over = |(_, entry): &(&BlobKey, &mut Entry)| {
                    !entry.is_leased()
                        && entry.idle_since.is_some_and(|since| since.elapsed() >= this.linger || is_short)
                };
                let over: Vec<BlobKey> = all.iter_mut().filter(is_over).map(|(blob, _)| *blob).collect();
                gone.extend(over.iter().filter_map(|blob| all.remove(blob)));
                for entry in all.values_mut() {
                    let idle_since = entry.idle_since.take().unwrap_or_else(Instant::now);
                    entry.idle_since = (!entry.is_leased()).then_some(idle_since);
                }
            }
            for entry in gone {
                tracing::debug!(
                    arena = entry.resident.arena().memory().name(),
                    is_short,
                    "no longer in memory"
                );
                drop(this.let_go(entry));
            }
            this.measure();
        }
    }
}

fn forget(provider: &Provider, arena: &str) {
    let asked = provider.with_keeper(|keeper| {
        // Both, whatever becomes of one of them.
        let note = keeper.drop_name(&format!("{NOTE}{arena}"));
        keeper.drop_name(arena).and(note)
    });
    if let Err(error) = asked {
        tracing::debug!(%error, "the keeper still has an arena");
    }
}

/// A name that begins so, and is never another one's: someone may still have that.
fn name_of(kind: &str) -> String {
    static MADE: AtomicU64 = AtomicU64::new(0);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    format!("{kind}{since}-{}", MADE.fetch_add(1, Ordering::Relaxed))
}

fn no_room(model: &str, bytes: u64, full: &NoRoom) -> Refusal {
    let limit = match full.limit {
        u64::MAX => String::new(),
        limit => format!(" of {}", display_bytes(limit)),
    };
    Refusal::memory(format!(
        "{model}: {} of tensors do not fit into the memory for hand-off{limit}, of which {} is in use: {}; raise \
         handoff.resident_limit and the keeper's --resident-limit, have tensors come through a smaller ring (`stream` \
         of weightd.open), or map the files of the volume",
        display_bytes(bytes),
        display_bytes(full.used),
        full.why
    ))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Refusal::stopping())
}
