//! One client's lease, from its first message to the end of its connection.

use std::{
    collections::{HashSet, VecDeque},
    io,
    ops::Range,
    os::fd::AsFd,
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, stream};
use rustix::net::UCred;
use tokio::{sync::watch, task::JoinSet, time::timeout};
use weightd_proto::v1::{
    FailureKind, HandoffAnswer, HandoffArenas, HandoffOpen, HandoffOpened, HandoffRange, HandoffRequest,
    HandoffWant, handoff_answer::Answer, handoff_request::Request,
};
use weightd_store::{SnapshotEntry, SnapshotManifest, SnapshotUse};
use weightd_types::{
    ByteRange, HEADER_LENGTH_BYTES, HeaderError, ModelFiles, SafetensorsHeader, SnapshotKey, WeightIndex,
};

use super::{
    Inner,
    arrangement::Arrangement,
    packets::{DESCRIPTORS, Packets},
    progress::{Progress, chunks_of_tensor},
    refusal::Refusal,
    resident::{Place, Resident},
    residents::Wanted,
    table,
};
use crate::{
    reading::{Brought, Target, chunks_of},
    shown::Condition,
};

/// Of the protocol.
const VERSION: u32 = 1;
/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a client may take to hear why its lease has ended.
const LEAVE_TAKING: Duration = Duration::from_secs(1);
/// Chunks that are brought for a lease at once: enough to keep a disk busy, and few enough that what a client wants next comes
/// next.
const AT_ONCE: usize = 8;
/// Files whose headers are looked for at once.
const HEADERS_AT_ONCE: usize = 16;

/// Which snapshots a socket serves.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Scope {
    /// A volume's.
    Snapshot(SnapshotKey),
    /// Any.
    Node,
}

/// A client's lease.
struct Lease {
    inner: Arc<Inner>,
    manifest: Arc<SnapshotManifest>,
    /// Each with the number of its arena.
    files: Vec<(String, usize)>,
    residents: Vec<Arc<Resident>>,
    progress: Progress,
    condition: watch::Receiver<Condition>,
    /// Tensors that the client wants before others, by their positions in the table.
    wanted: VecDeque<u32>,
    /// What is brought now: arena and chunks.
    current: Option<(usize, Range<u32>)>,
    /// What is brought when nothing is wanted; empty when nothing else shall be.
    rest: VecDeque<(usize, Range<u32>)>,
    loads: JoinSet<Result<(), String>>,
    _hold: SnapshotUse,
    _brought: Option<Brought>,
}

/// How a lease ended.
enum End {
    /// Its client went away.
    Gone,
    /// The agent ended it.
    Refused(Refusal),
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

/// Serves a client until it goes, or its lease cannot go on.
pub(crate) async fn serve(inner: Arc<Inner>, packets: Packets, who: Option<UCred>, scope: Scope) {
    let (pid, uid) = who.map_or((0, None), |who| (who.pid.as_raw_nonzero().get(), Some(who.uid.as_raw())));
    let metrics = inner.metrics.clone();
    metrics.leases.inc();
    let ended = serve_until(inner, &packets, scope, pid, uid).await;
    metrics.leases.dec();
    match ended {
        End::Gone => tracing::debug!(pid, "a lease ended"),
        End::Refused(refusal) => {
            tracing::warn!(pid, ?uid, why = refusal.message, "a lease was ended");
            // Who does not listen any more is not told.
            let answer = HandoffAnswer { answer: Some(Answer::Failed(refusal.into_message())) };
            let told = async {
                packets.send(&answer, &[]).await?;
                // What it said meanwhile and nobody reads would have the kernel throw the answer away.
                while packets.receive_any().await? > 0 {}
                io::Result::Ok(())
            };
            let _ = timeout(LEAVE_TAKING, told).await;
        }
    }
}

async fn serve_until(inner: Arc<Inner>, packets: &Packets, scope: Scope, pid: i32, uid: Option<u32>) -> End {
    let opened = async {
        let open = match timeout(PATIENCE, packets.receive::<HandoffRequest>()).await {
            Ok(Ok(Some(HandoffRequest { request: Some(Request::Open(open)) }))) => open,
            Ok(Ok(None)) => return Err(End::Gone),
            Ok(Ok(Some(_))) => return Err(Refusal::usage("a lease begins with the message `open`").into()),
            Ok(Err(error)) => return Err(Refusal::usage(format!("that is no message: {error}")).into()),
            Err(_) => return Err(Refusal::usage("nothing was asked for 10 seconds").into()),
        };
        // Whoever has gone meanwhile needs nothing any more.
        let lease = tokio::select! {
            lease = Lease::open(inner, &open, scope) => lease?,
            () = packets.hung_up() => return Err(End::Gone),
        };
        tracing::info!(pid, ?uid, source = %lease.manifest.source, files = lease.files.len(), "tensors are leased");
        Ok(lease)
    };
    let mut lease = match opened.await {
        Ok(lease) => lease,
        Err(end) => return end,
    };
    match lease.go_on(packets).await {
        Ok(()) => End::Gone,
        Err(end) => end,
    }
}

impl Lease {
    async fn open(inner: Arc<Inner>, open: &HandoffOpen, scope: Scope) -> Result<Self, Refusal> {
        if open.version != VERSION {
            return Err(Refusal::usage(format!(
                "this agent speaks version {VERSION} of the hand-off protocol, and the client version {}",
                open.version
            )));
        }
        let (key, brought) = match scope {
            Scope::Snapshot(key) if open.source.is_empty() => (key, None),
            Scope::Snapshot(_) => {
                return Err(Refusal::usage(
                    "the socket of a volume serves the volume's own snapshot: name no source",
                ));
            }
            Scope::Node => inner.find(&open.source).await?,
        };
        let gone =
            || Refusal::new(FailureKind::NotFound, format!("{key}: this node has no such snapshot any more"));
        let hold = inner.store().hold(key).map_err(|_| gone())?;
        let manifest = inner.store().snapshot(&key).ok_or_else(gone)?.manifest;
        let condition = inner.condition(key);
        let names = inner.files(&manifest, &condition, &open.files).await?;
        let entries = table::chosen(&manifest, &names)?;
        let (files, residents) = inner.residents_of(&manifest, &entries, &condition).await?;
        table::check_names(&files, &residents)?;
        let progress = Progress::new(&files, &residents);
        let all = residents.iter().enumerate();
        let rest = match open.wanted_only {
            true => VecDeque::new(),
            false => {
                all.map(|(at, resident)| (at, 0..resident.arena().arrangement().chunk_count())).collect()
            }
        };
        let (wanted, current, loads) = (VecDeque::new(), None, JoinSet::new());
        let lease = Self {
            inner,
            manifest,
            files,
            residents,
            progress,
            condition,
            wanted,
            current,
            rest,
            loads,
            _hold: hold,
            _brought: brought,
        };
        if !open.wanted_only {
            lease.provide();
        }
        Ok(lease)
    }

    /// Has the memory of all arenas provided ahead of what fills it.
    fn provide(&self) {
        let arenas: Vec<_> = self.residents.iter().map(|resident| Arc::downgrade(resident.arena())).collect();
        tokio::spawn(async move {
            for arena in arenas {
                // Who needs it and does not get it says so.
                let Some(arena) = arena.upgrade() else { return };
                let _ = arena.provide_all().await;
            }
        });
    }

    /// Tells the client what there is, and from then on what has come, and does as it wants.
    async fn go_on(&mut self, packets: &Packets) -> Result<(), End> {
        let changed = Arc::clone(&self.inner.residents.changed);
        let mut ready = self.progress.news();
        self.introduce(packets).await?;
        if self.progress.is_complete() {
            // Who was told so knows.
            ready.clear();
        }
        loop {
            // Made before looking, so that nothing is missed in between.
            let mut news = std::pin::pin!(changed.notified());
            news.as_mut().enable();
            if let Some((file, why)) = self.progress.wrong() {
                return Err(self.wrong(file, &why).into());
            }
            self.check_condition()?;
            ready.extend(self.progress.news());
            for ready in ready.drain(..) {
                packets.send(&HandoffAnswer { answer: Some(Answer::Ready(ready)) }, &[]).await?;
            }
            self.bring();
            tokio::select! {
                request = packets.receive::<HandoffRequest>() => match request {
                    Ok(Some(request)) => self.take(request)?,
                    Ok(None) => return Ok(()),
                    Err(error) if error.raw_os_error().is_some() => return Ok(()),
                    Err(error) => return Err(Refusal::usage(format!("that is no message: {error}")).into()),
                },
                Some(loaded) = self.loads.join_next(), if !self.loads.is_empty() => {
                    let why = match loaded {
                        Ok(Ok(())) => continue,
                        Ok(Err(why)) => why,
                        Err(_) => "a defect of weightd; its log says more".to_owned(),
                    };
                    return Err(Refusal::new(FailureKind::Unavailable, self.about(&why)).into());
                }
                _ = self.condition.changed() => {}
                () = news => {}
            }
        }
    }

    async fn introduce(&self, packets: &Packets) -> Result<(), End> {
        let (table, table_bytes) = table::table(&self.files, &self.residents)?;
        let opened = HandoffOpened {
            snapshot: self.manifest.key().to_string(),
            source: self.manifest.source.to_string(),
            table_bytes,
            arenas: number(self.residents.len()),
            complete: self.progress.is_complete(),
        };
        let beside = [table.as_fd()];
        packets.send(&HandoffAnswer { answer: Some(Answer::Opened(opened)) }, &beside).await?;
        let mut first = 0;
        for residents in self.residents.chunks(DESCRIPTORS) {
            let lengths = residents.iter().map(|resident| resident.arena().arrangement().arena_bytes());
            let arenas = HandoffArenas { first, lengths: lengths.collect() };
            let beside: Vec<_> = residents.iter().map(|resident| resident.arena().descriptor()).collect();
            packets.send(&HandoffAnswer { answer: Some(Answer::Arenas(arenas)) }, &beside).await?;
            first += number(residents.len());
        }
        Ok(())
    }

    fn take(&mut self, request: HandoffRequest) -> Result<(), Refusal> {
        match request.request {
            Some(Request::Want(HandoffWant { tensors })) => {
                let there = self.progress.tensors();
                let mut wanted: Vec<u32> = Vec::new();
                for HandoffRange { start, end } in tensors {
                    if start > end || end > there {
                        return Err(Refusal::usage(self.about(&format!(
                            "the tensors {start} to {end} were wanted, and there are {there}"
                        ))));
                    }
                    // Who wants the same again and again gets it once.
                    let room = (2 * there as usize).saturating_sub(wanted.len());
                    wanted.extend((start..end).take(room));
                }
                // What is wanted last is waited for now.
                self.rest.extend(self.current.take());
                self.want(wanted);
                Ok(())
            }
            Some(Request::Open(_)) => Err(Refusal::usage("a lease is opened once")),
            Some(Request::Release(_)) => Err(Refusal::usage("only what lies in a ring is released")),
            None => Err(Refusal::usage("a message of a kind that this agent does not know")),
        }
    }

    /// Puts tensors before those that were wanted earlier, as many of which are remembered as there are tensors.
    fn want(&mut self, tensors: Vec<u32>) {
        let is_news: HashSet<u32> = tensors.iter().copied().collect();
        self.wanted.retain(|position| !is_news.contains(position));
        for position in tensors.into_iter().rev() {
            self.wanted.push_front(position);
        }
    }

    /// Arena and chunks of a tensor.
    fn place_of(&self, position: u32) -> Option<(usize, Range<u32>)> {
        let (file, tensor) = self.progress.locate(position)?;
        let arena = self.files[file].1;
        Some((arena, chunks_of_tensor(&self.residents[arena], tensor)))
    }

    /// Begins to bring what is next, as much at once as helps.
    fn bring(&mut self) {
        while self.loads.len() < AT_ONCE {
            let Some((arena, chunk)) = self.next() else { return };
            let (inner, resident) = (Arc::clone(&self.inner), Arc::clone(&self.residents[arena]));
            let (manifest, condition) = (Arc::clone(&self.manifest), self.condition.clone());
            self.loads.spawn(async move { inner.bring(&manifest, &resident, chunk, condition).await });
        }
    }

    fn next(&mut self) -> Option<(usize, u32)> {
        loop {
            if self.current.is_none() {
                let wanted = self.wanted.pop_front().and_then(|position| self.place_of(position));
                self.current = wanted.or_else(|| self.rest.pop_front());
            }
            let (arena, chunks) = self.current.as_mut()?;
            let arena = *arena;
            match chunks.next() {
                Some(chunk) if self.residents[arena].is_here(chunk) => {}
                Some(chunk) => return Some((arena, chunk)),
                None => self.current = None,
            }
        }
    }

    fn check_condition(&mut self) -> Result<(), Refusal> {
        match &*self.condition.borrow_and_update() {
            Condition::Fine | Condition::Failed { is_lasting: false, .. } => Ok(()),
            Condition::Failed { why, .. } => Err(Refusal::new(FailureKind::Unavailable, why.to_string())),
            Condition::Stopped(why) => Err(Refusal::new(FailureKind::Corrupt, why.to_string())),
        }
    }

    fn wrong(&self, file: usize, why: &str) -> Refusal {
        let path = &self.files[file].0;
        Refusal::new(FailureKind::Corrupt, format!("{}/{path}: {why}; open it again", self.manifest.source))
    }

    fn about(&self, why: &str) -> String {
        format!("{}: {why}", self.manifest.source)
    }
}

impl Inner {
    /// The names of the files that are meant.
    async fn files(
        self: &Arc<Self>,
        manifest: &SnapshotManifest,
        condition: &watch::Receiver<Condition>,
        named: &[String],
    ) -> Result<Vec<String>, Refusal> {
        if !named.is_empty() {
            return Ok(named.to_vec());
        }
        let paths = manifest.objects.iter().map(|entry| entry.object.path.as_str());
        match ModelFiles::among(paths.filter(|path| !path.contains('/'))) {
            ModelFiles::All(names) => Ok(names.into_iter().map(str::to_owned).collect()),
            ModelFiles::Index(name) => {
                let json = self.read_small(manifest, name, condition).await?;
                table::shards(manifest, name, &json)
            }
            ModelFiles::None => Err(Refusal::new(
                FailureKind::NotFound,
                format!("{} has no .safetensors file at its top", manifest.source),
            )),
            ModelFiles::Ambiguous(indices) => Err(Refusal::usage(format!(
                "{} has {} indices ({}): name the files of one model",
                manifest.source,
                indices.len(),
                indices.join(", ")
            ))),
        }
    }

    /// Files with the number of the arena that each is in, and the arenas.
    async fn residents_of(
        self: &Arc<Self>,
        manifest: &SnapshotManifest,
        entries: &[&SnapshotEntry],
        condition: &watch::Receiver<Condition>,
    ) -> Result<(Vec<(String, usize)>, Vec<Arc<Resident>>), Refusal> {
        let mut blobs: Vec<&SnapshotEntry> = Vec::new();
        let mut files = Vec::with_capacity(entries.len());
        for entry in entries {
            let known = blobs.iter().position(|known| known.blob == entry.blob);
            let arena = known.unwrap_or_else(|| {
                blobs.push(entry);
                blobs.len() - 1
            });
            files.push((entry.object.path.to_string(), arena));
        }
        let wanted = async |entry: &SnapshotEntry| {
            let blob = entry.blob;
            if let Some(resident) = self.residents.known(&blob) {
                return Ok(Wanted::Here(resident));
            }
            let (header, bytes) = self.header(manifest, entry, condition).await?;
            let arrangement = Arrangement::of(&header, bytes);
            Ok::<_, Refusal>(Wanted::Missing { blob, header, arrangement })
        };
        let wanted = stream::iter(blobs).map(wanted).buffered(HEADERS_AT_ONCE).try_collect().await?;
        let residents = self.residents.lease(wanted, &manifest.source.to_string()).await?;
        Ok((files, residents))
    }

    /// Brings a chunk to its place, from wherever it is nearest.
    async fn bring(
        &self,
        manifest: &SnapshotManifest,
        resident: &Resident,
        chunk: u32,
        condition: watch::Receiver<Condition>,
    ) -> Result<(), String> {
        let arena = resident.arena();
        if let Err(why) = arena.provide(chunk).await {
            // Whoever comes next gets another, which may fare better.
            self.residents.give_up(resident);
            return Err(why);
        }
        let range = arena.arrangement().chunk_range(chunk);
        let target = Target { snapshot: manifest.key(), blob: resident.blob(), chunk, range };
        let load = async {
            if arena.arrangement().straight(chunk).is_some() {
                let place = Place { resident, chunk };
                let loaded = self.chunks.load(condition, target, &place).await?;
                loaded.buffer.landed(loaded.crc);
            } else {
                let loaded = self.chunks.load(condition, target, &self.pool).await?;
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

    /// The header that a blob begins with, and the blob's length.
    async fn header(
        &self,
        manifest: &SnapshotManifest,
        entry: &SnapshotEntry,
        condition: &watch::Receiver<Condition>,
    ) -> Result<(SafetensorsHeader, u64), Refusal> {
        if let Some(found) = table::header(self.store(), self.chunks.demands(), manifest, entry).await? {
            return Ok(found);
        }
        let size = entry.object.size;
        let invalid = |error| {
            Refusal::new(FailureKind::Corrupt, format!("{}/{} {error}", manifest.source, entry.object.path))
        };
        if size < HEADER_LENGTH_BYTES {
            return Err(invalid(HeaderError::TooShort(size)));
        }
        let first = self.read_front(manifest, entry, HEADER_LENGTH_BYTES, condition).await?;
        let bytes = SafetensorsHeader::length(&first, size).map_err(invalid)?;
        let raw = self.read_front(manifest, entry, bytes, condition).await?;
        Ok((SafetensorsHeader::parse(raw.into(), size).map_err(invalid)?, size))
    }

    /// Reads a small file whole.
    async fn read_small(
        &self,
        manifest: &SnapshotManifest,
        name: &str,
        condition: &watch::Receiver<Condition>,
    ) -> Result<Vec<u8>, Refusal> {
        let entry = manifest.objects.iter().find(|entry| entry.object.path.as_str() == name);
        let entry = entry.ok_or_else(|| Refusal::usage(format!("{} has no {name}", manifest.source)))?;
        let too_long =
            |error| Refusal::new(FailureKind::Corrupt, format!("{}/{name} {error}", manifest.source));
        WeightIndex::check_length(entry.object.size).map_err(too_long)?;
        self.read_front(manifest, entry, entry.object.size, condition).await
    }

    /// Reads the first bytes of an object in the original layout.
    async fn read_front(
        &self,
        manifest: &SnapshotManifest,
        entry: &SnapshotEntry,
        bytes: u64,
        condition: &watch::Receiver<Condition>,
    ) -> Result<Vec<u8>, Refusal> {
        let mut read = Vec::new();
        for chunk in chunks_of(ByteRange::new(0, bytes)) {
            let range = ByteRange::of_chunk(chunk, entry.object.size);
            let target = Target { snapshot: manifest.key(), blob: entry.blob, chunk, range };
            let loaded = self.chunks.load(condition.clone(), target, &self.pool).await;
            let failed = |why| {
                let message = format!("{}/{}: {why}", manifest.source, entry.object.path);
                Refusal::new(FailureKind::Unavailable, message)
            };
            read.extend_from_slice(&loaded.map_err(failed)?.buffer);
        }
        read.truncate(usize::try_from(bytes).unwrap_or(usize::MAX));
        Ok(read)
    }
}

fn number(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
