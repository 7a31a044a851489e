//! Tensors that come to one client one after the other, through a ring.
//!
//! A tensor lies in the ring until the client gives its place back; when there is no room for the next one, nothing comes. Bytes
//! are copied here, out of whatever is nearest, because each tensor, or the slice of it that is needed, becomes one range of
//! bytes. Only chunks that lie in the midst of a tensor are read straight into their place.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, stream};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::timeout,
};
use weightd_proto::v1::{
    HandoffAnswer, HandoffArenas, HandoffDelivered, HandoffFull, HandoffPlace, HandoffRing,
    handoff_answer::Answer, handoff_request::Request,
};
use weightd_types::{BlobKey, ByteRange, CHUNK_BYTES, Crc32c, SafetensorsHeader, TensorSlice, display_bytes};

use super::{
    Inner,
    lease::{positions, put_first},
    model::{Found, Model},
    packets::Packets,
    refusal::Refusal,
    ring::{Place, Ring, bytes_of_place},
    serve::{DEFECT, End, hear, introduce, say},
    table::{Needed, Tensors, number},
    trust::{Seen, Trust, confirm},
};
use crate::{
    reading::{Target, chunks_of, to_usize},
    shown::Condition,
};

/// How long a ring is, unless its client knows better.
const RING_BYTES: u64 = 1 << 30;
/// Rings are whole huge pages.
const PAGE: u64 = 2 << 20;
/// Most bytes of tensors that are brought at once: a chunk for each of as many requests as the fastest origins need, because what
/// comes and has no place yet is read back from the disk.
const AT_ONCE: u64 = 32 * CHUNK_BYTES;
/// Most tensors that are brought at once.
const TENSORS_AT_ONCE: usize = 64;
/// How often someone who waits for a file to be verified says so.
const DEMAND_AGAIN: Duration = Duration::from_secs(1);
/// Chunks of a tensor that are brought at once.
const CHUNKS_AT_ONCE: usize = 8;
/// Most places in one message: it has to fit into a packet.
const PLACES: usize = 3000;

/// A client's tensors.
pub(crate) struct Stream {
    model: Model,
    blobs: Vec<Arc<Streamed>>,
    tensors: Arc<Tensors>,
    ring: Arc<Ring>,
    /// Whether what is delivered has to be known to be what the origin has.
    verified: bool,
    /// Told when a blob turns out to be right, or wrong.
    changed: Arc<Notify>,
    /// What comes next, by positions in the table.
    wanted: VecDeque<u32>,
    /// What comes when nothing is wanted.
    rest: Range<u32>,
    /// Which tensors have come at least once, or begun to.
    begun: Vec<bool>,
    /// Tensors that are in the ring, or on their way there.
    places: HashMap<u32, Held>,
    loads: JoinSet<(u32, Result<Arc<Place>, String>)>,
    /// Bytes that are on their way.
    loading: u64,
    /// The client was told that this one has no room.
    full: Option<u32>,
    /// Has what is missing come in its order; nothing when nothing is.
    following: Option<Arc<()>>,
}

/// A place in the ring.
enum Held {
    /// Someone fills it.
    Loading,
    /// The client has it.
    Delivered { _place: Arc<Place> },
}

/// A blob of which a client gets tensors.
struct Streamed {
    blob: BlobKey,
    header: SafetensorsHeader,
    bytes: u64,
    seen: Arc<Seen>,
}

/// One tensor, on its way to its place.
struct Load {
    inner: Arc<Inner>,
    condition: watch::Receiver<Condition>,
    blob: Arc<Streamed>,
    verified: bool,
    target: Target,
    slice: Option<TensorSlice>,
    place: Arc<Place>,
    changed: Arc<Notify>,
}

impl Stream {
    /// Makes a ring for a model, all of which comes through it, or only what is wanted.
    pub(crate) async fn open(model: Model, ring: &HandoffRing, wanted_only: bool) -> Result<Self, Refusal> {
        let changed: Arc<Notify> = Arc::default();
        let blobs = model.look().await?.into_iter().zip(&model.blobs).map(|(found, entry)| {
            let (header, bytes) = match found {
                Found::Resident(resident) => {
                    (resident.header().clone(), resident.arena().arrangement().blob_bytes())
                }
                Found::Header(header, bytes) => (header, bytes),
            };
            let seen = Seen::new(number(to_usize(bytes.div_ceil(CHUNK_BYTES))), Arc::clone(&changed));
            Arc::new(Streamed { blob: entry.blob, header, bytes, seen: Arc::new(seen) })
        });
        let blobs: Vec<_> = blobs.collect();
        let headers: Vec<_> = blobs.iter().map(|blob| &blob.header).collect();
        let tensors = Arc::new(Tensors::new(&model, &headers)?);
        let all: u64 = (0..tensors.count()).map(|position| place_of(&tensors, position)).sum();
        let asked = if ring.bytes == 0 { RING_BYTES } else { ring.bytes };
        let bytes = asked.min(all).next_multiple_of(PAGE).max(PAGE);
        if !wanted_only {
            let largest = (0..tensors.count()).max_by_key(|&position| place_of(&tensors, position));
            largest.map_or(Ok(()), |largest| check_fits(&model, &blobs, &tensors, bytes, largest))?;
        }
        let verified = ring.verified;
        model.inner.watch(&blobs);
        let ring = model.inner.residents.ring(bytes, &model.manifest.source.to_string()).await?;
        let rest = if wanted_only { 0..0 } else { 0..tensors.count() };
        Ok(Self {
            blobs,
            ring: Arc::new(ring),
            verified,
            changed,
            wanted: VecDeque::new(),
            rest,
            begun: vec![false; tensors.count() as usize],
            tensors,
            places: HashMap::new(),
            loads: JoinSet::new(),
            loading: 0,
            full: None,
            following: Some(model.inner.chunks.demands().follow()),
            model,
        })
    }

    pub(crate) fn model(&self) -> &Model {
        &self.model
    }

    /// Tells the client what there is, and from then on what has come, and does as it wants.
    pub(crate) async fn go_on(&mut self, packets: &Packets) -> Result<(), End> {
        let changed = Arc::clone(&self.changed);
        self.introduce(packets).await?;
        loop {
            // Made before looking, so that nothing is missed in between.
            let mut news = std::pin::pin!(changed.notified());
            news.as_mut().enable();
            self.check_trust()?;
            self.model.check_condition()?;
            self.follow_no_more_than_needed();
            self.bring()?;
            if let Some(full) = self.is_full() {
                say(packets, Answer::Full(full)).await?;
            }
            tokio::select! {
                request = hear(packets) => match request? {
                    Some(request) => self.take(request)?,
                    None => return Ok(()),
                },
                Some(loaded) = self.loads.join_next(), if !self.loads.is_empty() => {
                    // Before anything is said to have failed, or delivered: what is wrong is called so.
                    self.check_trust()?;
                    self.model.check_condition()?;
                    let mut delivered = vec![self.loaded(loaded)?];
                    while let Some(loaded) = self.loads.try_join_next() {
                        delivered.push(self.loaded(loaded)?);
                    }
                    self.check_trust()?;
                    for places in delivered.chunks(PLACES) {
                        say(packets, Answer::Delivered(HandoffDelivered { places: places.to_vec() })).await?;
                    }
                }
                _ = self.model.condition.changed() => {}
                () = news => {}
            }
        }
    }

    async fn introduce(&self, packets: &Packets) -> Result<(), End> {
        let headers: Vec<_> = self.blobs.iter().map(|blob| &blob.header).collect();
        let (table, table_bytes) = self.tensors.table(&self.model, &headers, None)?;
        introduce(packets, &self.model, &table, table_bytes, 1, false).await?;
        let memory = self.ring.memory();
        let arenas = HandoffArenas { first: 0, lengths: vec![memory.bytes()] };
        packets.send(&HandoffAnswer { answer: Some(Answer::Arenas(arenas)) }, &[memory.descriptor()]).await?;
        Ok(())
    }

    fn take(&mut self, request: Request) -> Result<(), Refusal> {
        self.full = None;
        match request {
            Request::Want(want) => {
                let wanted = positions(&want, &self.model, &self.tensors)?;
                for &position in &wanted {
                    check_fits(
                        &self.model,
                        &self.blobs,
                        &self.tensors,
                        self.ring.memory().bytes(),
                        position,
                    )?;
                }
                put_first(&mut self.wanted, wanted);
                Ok(())
            }
            Request::Release(release) => {
                for position in release.tensors {
                    match self.places.remove(&position) {
                        Some(Held::Delivered { .. }) => {}
                        Some(Held::Loading) | None => {
                            return Err(Refusal::usage(self.model.about(&format!(
                                "the tensor {position} was released, and was not delivered"
                            ))));
                        }
                    }
                }
                Ok(())
            }
            Request::Open(_) => Err(Refusal::usage("a lease is opened once")),
        }
    }

    /// Lets others have long requests again once everything is here.
    fn follow_no_more_than_needed(&mut self) {
        if self.blobs.iter().all(|blob| blob.seen.trust() == Trust::Verified) {
            self.following = None;
        }
    }

    /// Begins to bring what is next, as much at once as helps and there is room for.
    fn bring(&mut self) -> Result<(), Refusal> {
        // Half of a short ring is for what the client has.
        let at_once = AT_ONCE.min(self.ring.memory().bytes() / 2);
        while self.loads.is_empty() || self.loading < at_once && self.loads.len() < TENSORS_AT_ONCE {
            let Some(position) = self.next() else { return Ok(()) };
            let Needed { blob, span } = self.tensors.needed(position);
            let bytes = self.tensors.bytes(position);
            let Some(place) = self.ring.place(span.start, bytes) else { return Ok(()) };
            self.was_next(position);
            self.begun[position as usize] = true;
            self.places.insert(position, Held::Loading);
            self.loading += bytes;
            let (place, blob) = (Arc::new(place), Arc::clone(&self.blobs[blob]));
            let snapshot = self.model.manifest.key();
            let target = Target::now(snapshot, blob.blob, 0, span);
            let load = Load {
                inner: Arc::clone(&self.model.inner),
                condition: self.model.condition.clone(),
                verified: self.verified,
                target,
                slice: self.tensors.slice(position).cloned(),
                place: Arc::clone(&place),
                changed: Arc::clone(&self.changed),
                blob,
            };
            self.loads.spawn(async move { (position, load.run().await.map(|()| place)) });
        }
        Ok(())
    }

    /// Position of what comes next; it stays next until there is room for it.
    fn next(&mut self) -> Option<u32> {
        let is_due = |position: u32| !self.places.contains_key(&position) && self.tensors.bytes(position) > 0;
        while self.wanted.front().is_some_and(|&position| !is_due(position)) {
            self.wanted.pop_front();
        }
        let is_first = |position: u32| !self.begun[position as usize] && is_due(position);
        while !self.rest.is_empty() && !is_first(self.rest.start) {
            self.rest.start += 1;
        }
        self.wanted.front().copied().or((!self.rest.is_empty()).then_some(self.rest.start))
    }

    fn was_next(&mut self, position: u32) {
        if self.wanted.front() == Some(&position) {
            self.wanted.pop_front();
        }
    }

    fn loaded(
        &mut self,
        loaded: Result<(u32, Result<Arc<Place>, String>), tokio::task::JoinError>,
    ) -> Result<HandoffPlace, Refusal> {
        let (tensor, place) = loaded.map_err(|_| self.model.unavailable(DEFECT))?;
        let place = place.map_err(|why| self.model.unavailable(&why))?;
        self.loading -= self.tensors.bytes(tensor);
        let offset = place.start();
        self.places.insert(tensor, Held::Delivered { _place: place });
        Ok(HandoffPlace { tensor, offset })
    }

    /// What to tell a client that waits for what has no room.
    fn is_full(&mut self) -> Option<HandoffFull> {
        let tensor = self.next().filter(|_| self.loads.is_empty())?;
        if self.full.replace(tensor) == Some(tensor) {
            return None;
        }
        Some(HandoffFull { tensor, bytes: place_of(&self.tensors, tensor) })
    }

    fn check_trust(&self) -> Result<(), Refusal> {
        for (at, blob) in self.blobs.iter().enumerate() {
            if let Trust::Wrong(why) = blob.seen.trust() {
                let file = self.model.files.iter().position(|(_, of)| *of == at).unwrap_or_default();
                return Err(self.model.wrong(file, &why));
            }
        }
        Ok(())
    }
}

/// How many bytes of the ring a tensor takes.
fn place_of(tensors: &Tensors, position: u32) -> u64 {
    match tensors.bytes(position) {
        0 => 0,
        bytes => bytes_of_place(tensors.needed(position).span.start, bytes),
    }
}

fn check_fits(
    model: &Model,
    blobs: &[Arc<Streamed>],
    tensors: &Tensors,
    ring: u64,
    position: u32,
) -> Result<(), Refusal> {
    let needed = place_of(tensors, position);
    if needed <= ring {
        return Ok(());
    }
    let file = tensors.file(position);
    let header = &blobs[tensors.needed(position).blob].header;
    let name = &header.tensors()[(position - tensors.first(file)) as usize].0;
    Err(Refusal::memory(model.about(&format!(
        "the tensor {name:?} takes {}, and the ring has {}: ask for a ring of at least {needed} bytes",
        display_bytes(needed),
        display_bytes(ring)
    ))))
}

impl Inner {
    /// Hears of what is wrong with these, as long as someone has them.
    fn watch(self: &Arc<Self>, blobs: &[Arc<Streamed>]) {
        let mut streamed = self.streamed();
        streamed.retain(|(_, seen)| seen.strong_count() > 0);
        for blob in blobs {
            let (key, seen) = (blob.blob, Arc::downgrade(&blob.seen));
            streamed.push((key, seen.clone()));
            let this = Arc::clone(self);
            tokio::spawn(async move { confirm(&seen, key, this.store()).await });
        }
    }
}

impl Load {
    /// Fills the place.
    async fn run(self) -> Result<(), String> {
        self.place.provide().await?;
        if self.verified {
            self.until_verified().await;
        }
        let chunks = stream::iter(chunks_of(self.target.range)).map(|chunk| self.bring(chunk));
        chunks.buffer_unordered(CHUNKS_AT_ONCE).try_collect().await
    }

    /// Waits until the origin is known to have the same; when it has not, the lease is about to end.
    async fn until_verified(&self) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.blob.seen.trust() == Trust::Verified {
                return;
            }
            let Target { snapshot, blob, range, .. } = self.target;
            self.inner.chunks.demands().demand(snapshot, blob, range);
            self.inner.chunks.demands().prefer(snapshot, blob);
            // Said again, because what was to bring it may have failed since.
            let _ = timeout(DEMAND_AGAIN, changed).await;
        }
    }

    /// Brings what the tensor has in a chunk, from wherever that is nearest.
    async fn bring(&self, chunk: u32) -> Result<(), String> {
        let Self { inner, blob, .. } = self;
        let resident = inner.residents.known(&blob.blob);
        let shown = resident.and_then(|resident| {
            let crc = resident.arena().seen().of(chunk)?;
            resident.arena().show(chunk, |range, bytes| self.put(range, bytes))?;
            Some(crc)
        });
        if let Some(crc) = shown {
            return self.saw(chunk, crc);
        }
        let range = ByteRange::of_chunk(chunk, blob.bytes);
        let (target, condition) = (Target { chunk, ..self.target }, self.condition.clone());
        if let Some(straight) = self.straight(range) {
            let loaded = inner.chunks.load(condition, target, &straight).await?;
            return self.saw(chunk, loaded.crc);
        }
        let cell = inner.cache.cell((blob.blob, chunk));
        let loaded = cell
            .get_or_try_init(async || {
                Ok::<_, String>(Arc::new(inner.chunks.load(condition, target, &inner.cache).await?))
            })
            .await?;
        inner.cache.has_filled();
        self.put(range, &loaded.buffer);
        self.saw(chunk, loaded.crc)
    }

    /// A chunk that was brought has that checksum. One that is wrong is not delivered.
    fn saw(&self, chunk: u32, crc: Crc32c) -> Result<(), String> {
        if self.blob.seen.saw(chunk, crc) {
            return Ok(());
        }
        // Whoever comes next gets it from elsewhere.
        self.inner.cache.forget(&self.blob.blob);
        Err("part of it is not what the origin has".to_owned())
    }

    /// Room for a whole chunk in its place.
    fn straight(&self, chunk: ByteRange) -> Option<super::ring::Straight> {
        let span = self.target.range;
        let is_inside = span.start <= chunk.start && chunk.end <= span.end && chunk.len() == CHUNK_BYTES;
        let is_contiguous = self.slice.as_ref().is_none_or(TensorSlice::is_contiguous);
        if is_inside && is_contiguous { self.place.straight(chunk.start - span.start) } else { None }
    }

    /// Puts what the tensor needs of a range of the blob.
    fn put(&self, range: ByteRange, bytes: &[u8]) {
        let span = self.target.range;
        let part =
            |from: u64, until: u64| &bytes[to_usize(from - range.start)..to_usize(until - range.start)];
        let (from, until) = (range.start.max(span.start), range.end.min(span.end));
        if from >= until {
            return;
        }
        let Some(slice) = self.slice.as_ref().filter(|slice| !slice.is_contiguous()) else {
            return self.place.put(from - span.start, part(from, until));
        };
        let (step, length) = (slice.step as u64, slice.run_bytes as u64);
        for run in (from - span.start) / step..(until - span.start).div_ceil(step) {
            let start = span.start + run * step;
            let (first, behind) = (from.max(start), until.min(start + length));
            if first < behind {
                self.place.put(run * length + (first - start), part(first, behind));
            }
        }
    }
}
