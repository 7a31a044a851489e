//! A blob that is still arriving.
//!
//! Chunks are written in any order. A chunk is present once all its pieces are written; it is provisional until the
//! whole object is confirmed. Piece checksums are kept because, combined in object order, they give the object's own.

mod in_memory;
mod state;

use std::{
    collections::BTreeSet,
    io::{self, ErrorKind},
    ops::Range,
    path::Path,
    sync::{
        Arc, Mutex, RwLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::{Notify, OnceCell, broadcast, futures::Notified};
use weightd_types::{BlobKey, ByteRange, CHUNK_BYTES, Crc32c, Layout, Object, Placement, SafetensorsHeader};

use crate::{
    BlobManifest, Landing, Store, StoreError,
    gate::{Gate, write_to_the_end},
    index::{ChunkUpdate, PartialRecord},
    io::{Access, BLOCK_BYTES, Buffer, IoEngine, IoFile},
    paths::FORMAT_VERSION,
    snapshots::set_mode,
    store::{lock, now},
    usage::{Reservation, is_file},
};
use state::State;

/// A blob that someone wants to be there.
#[derive(Debug, Clone)]
pub struct WantedBlob {
    /// Its key.
    pub key: BlobKey,
    /// Full URL of its object.
    pub url: String,
    /// Its object.
    pub object: Object,
    /// The object's own header when the layout replaces it, else empty.
    pub header: Bytes,
    /// Where the object's bytes go.
    pub placement: Arc<Placement>,
}

/// A blob that is still arriving.
#[derive(Debug)]
pub struct PartialBlob {
    wanted: WantedBlob,
    file: Arc<IoFile>,
    engine: Arc<dyn IoEngine>,
    gate: Gate,
    state: Mutex<State>,
    advanced: Notify,
    /// Who wants it in memory.
    pub(crate) landing: RwLock<Option<Weak<dyn Landing>>>,
    /// Set once the literal is written.
    literal: OnceCell<()>,
    /// Whether the file's name is durable.
    name_is_durable: AtomicBool,
}

impl PartialBlob {
    /// Its key.
    pub fn key(&self) -> BlobKey {
        self.wanted.key
    }

    /// What was wanted.
    pub fn wanted(&self) -> &WantedBlob {
        &self.wanted
    }

    /// Where the object's bytes go.
    pub fn placement(&self) -> &Arc<Placement> {
        &self.wanted.placement
    }

    /// Whether a piece (index into [`Placement::pieces`]) is written.
    pub fn has_piece(&self, piece: usize) -> bool {
        lock(&self.state).pieces[piece].is_some()
    }

    /// Whether a chunk is written; it is provisional until the blob is complete.
    pub fn has_chunk(&self, chunk: u32) -> bool {
        lock(&self.state).lacking[chunk as usize] == 0
    }

    /// Whether [`PartialBlob::read_chunk`] would find a chunk: it is written, or on its way to the disk.
    pub fn can_read(&self, chunk: u32) -> bool {
        let state = lock(&self.state);
        state.lacking[chunk as usize] == 0 || state.in_memory.contains_key(&chunk)
    }

    /// Whether every chunk is written.
    pub fn is_whole(&self) -> bool {
        lock(&self.state).absent == 0
    }

    /// Bytes of the object that are here.
    pub fn present_bytes(&self) -> u64 {
        let state = lock(&self.state);
        let pieces = self.placement().pieces().iter().zip(&state.pieces);
        self.placement().replaced()
            + pieces.filter(|(_, crc)| crc.is_some()).map(|(piece, _)| piece.object.len()).sum::<u64>()
    }

    /// Chunks taken over from an earlier run's records and not read back since: what the disk holds of them is unknown
    /// until [`PartialBlob::read_chunk`] has compared it.
    pub fn restored(&self) -> Vec<u32> {
        lock(&self.state).restored.iter().copied().collect()
    }

    /// Waits until more is written than when the future was made.
    pub fn advanced(&self) -> Notified<'_> {
        self.advanced.notified()
    }

    /// Writes bytes at `blob_offset`, which complete `pieces` (index and checksum of each).
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Full`], [`StoreError::Closed`].
    pub async fn write(
        &self,
        blob_offset: u64,
        buffer: Buffer,
        pieces: &[(usize, Crc32c)],
    ) -> Result<(), StoreError> {
        let pass = self.gate.enter()?;
        let buffer = Arc::new(buffer);
        let shown = self.show_in_memory(blob_offset, &buffer, pieces);
        let outcome = write_to_the_end(&self.engine, &self.file, blob_offset, buffer, pass).await;
        outcome.map_err(|error| self.write_error(error))?;
        let mut state = lock(&self.state);
        for &(piece, crc) in pieces {
            state.mark(self.placement(), piece, crc);
        }
        drop(state);
        // Not before: there is no moment at which a reader finds it in neither place.
        drop(shown);
        self.advanced.notify_waiters();
        Ok(())
    }

    /// Blobs have their room beforehand, but not on every file system.
    fn write_error(&self, error: io::Error) -> StoreError {
        let path = self.file.path();
        if !matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
            return StoreError::io("write", path)(error);
        }
        // The store is three above: blobs, and one of its 256 directories.
        let directory = path.ancestors().nth(3).unwrap_or(path).to_owned();
        let limit = format!("the file system refused: {error}");
        StoreError::Full { directory, needed: self.placement().blob_len(), available: 0, limit }
    }

    /// Reads a written piece back: a buffer, and where in it the piece lies.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub async fn read_piece(
        &self,
        piece: usize,
        buffer: Buffer,
    ) -> Result<(Buffer, Range<usize>), StoreError> {
        let range = self.placement().pieces()[piece].blob_range();
        read_span(self.engine.as_ref(), &self.file, range, buffer).await
    }

    /// Reads a chunk for someone who wants its bytes, and its checksum: what is missing stays missing, and a chunk that is not
    /// what was written becomes missing. What is on its way to the disk comes from memory.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub async fn read_chunk(
        &self,
        chunk: u32,
        mut buffer: Buffer,
    ) -> Result<Option<(Buffer, Crc32c)>, StoreError> {
        let in_memory = lock(&self.state).in_memory.get(&chunk).cloned();
        if let Some(bytes) = in_memory {
            buffer.clear();
            let crc = buffer.extend_summed(&self.placement().literal_of_chunk(chunk), Crc32c::EMPTY);
            let crc = buffer.extend_summed(&bytes, crc);
            return Ok(Some((buffer, crc)));
        }
        let Some(expected) = lock(&self.state).chunk_crc(self.placement(), chunk) else { return Ok(None) };
        let range = self.placement().chunk_range(chunk);
        let (buffer, within) = read_span(self.engine.as_ref(), &self.file, range, buffer).await?;
        if Crc32c::of(&buffer[within]) == expected {
            lock(&self.state).restored.remove(&chunk);
            return Ok(Some((buffer, expected)));
        }
        tracing::warn!(
            url = self.wanted.url,
            chunk,
            "a chunk rotted before its blob was complete; fetching it again"
        );
        lock(&self.state).forget(self.placement(), chunk);
        Ok(None)
    }

    /// Wakes whoever waits for more of it.
    pub(crate) fn wake(&self) {
        self.advanced.notify_waiters();
    }

    /// CRC-32C of the whole object, combined from its pieces; `None` while any is missing.
    pub fn object_crc32c(&self) -> Option<Crc32c> {
        lock(&self.state).object_crc(self.placement(), &self.wanted.header)
    }

    /// Chunks of which some piece does not have the checksum given here, or is missing; `crcs` are of all pieces, in their
    /// order.
    pub fn chunks_unlike(&self, crcs: &[Crc32c]) -> BTreeSet<u32> {
        let state = lock(&self.state);
        let pieces = self.placement().pieces().iter().zip(&state.pieces).zip(crcs);
        pieces
            .filter(|((_, own), crc)| own.as_ref() != Some(*crc))
            .map(|((piece, _), _)| piece.chunk)
            .collect()
    }

    pub(crate) fn file(&self) -> &Arc<IoFile> {
        &self.file
    }

    /// What is written and not recorded; it counts as recorded from here on.
    pub(crate) fn take_unrecorded(&self) -> Option<ChunkUpdate> {
        let mut state = lock(&self.state);
        if state.unrecorded.is_empty() {
            return None;
        }
        let taken = std::mem::take(&mut state.unrecorded);
        let crcs = |chunk: u32| -> Option<(u32, Vec<Crc32c>)> {
            let pieces = self.placement().pieces_of_chunk(chunk);
            Some((chunk, pieces.iter().map(|&piece| state.pieces[piece as usize]).collect::<Option<_>>()?))
        };
        Some(ChunkUpdate {
            key: self.key(),
            record: PartialRecord {
                url: self.wanted.url.clone(),
                object: self.wanted.object.clone(),
                updated_at: now(),
            },
            header: self.wanted.header.clone(),
            chunks: taken.into_iter().filter_map(crcs).collect(),
        })
    }

    /// Whether anything is written that no record speaks of.
    pub(crate) fn has_unrecorded(&self) -> bool {
        !lock(&self.state).unrecorded.is_empty()
    }

    /// Makes what is written durable, and the file's name with it.
    pub(crate) fn make_durable(&self, directory: &Path) -> Result<(), StoreError> {
        self.engine.sync(&self.file).map_err(StoreError::io("sync", self.file.path()))?;
        if !self.name_is_durable.load(Ordering::Acquire) {
            self.engine.sync_directory(directory).map_err(StoreError::io("sync", directory))?;
            self.name_is_durable.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Gives chunks back that could not be recorded.
    pub(crate) fn put_back(&self, update: &ChunkUpdate) {
        lock(&self.state).unrecorded.extend(update.chunks.iter().map(|(chunk, _)| *chunk));
    }

    /// The manifest of the blob, whose chunks must all be written.
    pub(crate) fn manifest(&self) -> Option<BlobManifest> {
        let placement = self.placement();
        let state = lock(&self.state);
        let chunk_crc = |chunk: u32| state.chunk_crc(placement, chunk);
        Some(BlobManifest {
            format: FORMAT_VERSION,
            key: self.key(),
            url: self.wanted.url.clone(),
            object: self.wanted.object.clone(),
            blob_bytes: placement.blob_len(),
            chunk_bytes: CHUNK_BYTES,
            chunk_crc32c: (0..placement.chunk_count()).map(chunk_crc).collect::<Option<_>>()?,
            header_bytes: placement.replaced(),
            header_crc32c: Crc32c::of(&self.wanted.header),
            runs: placement.runs().to_vec(),
        })
    }

    /// Writes the literal, also over one that is there: no record says whether a chunk without pieces is sound.
    async fn ensure_literal(&self, store: &Store) -> Result<(), StoreError> {
        self.literal.get_or_try_init(|| self.write_literal(store)).await.map(drop)
    }

    async fn write_literal(&self, store: &Store) -> Result<(), StoreError> {
        let literal = self.placement().literal().clone();
        let mut offset = 0;
        while offset < literal.len() {
            let mut buffer = store.pool().acquire().await;
            let part = literal.slice(offset..literal.len().min(offset + buffer.capacity()));
            buffer.extend_from_slice(&part);
            self.write(offset as u64, buffer, &[]).await?;
            offset += part.len();
        }
        Ok(())
    }
}

/// Removes a directory that someone put in a blob's place, if that loses nothing.
fn remove_stranger(directory: &Path) -> Result<(), StoreError> {
    std::fs::remove_dir(directory).map_err(|error| {
        let why = format!("{error}; a directory is in the place of a file of the store: move it away");
        StoreError::io("remove", directory)(io::Error::new(error.kind(), why))
    })
}

/// Reads a range of at most a chunk, wherever it begins.
pub(crate) async fn read_span(
    engine: &dyn IoEngine,
    file: &Arc<IoFile>,
    range: ByteRange,
    buffer: Buffer,
) -> Result<(Buffer, Range<usize>), StoreError> {
    let start = range.start / BLOCK_BYTES * BLOCK_BYTES;
    let (from, to) = (to_usize(range.start - start), to_usize(range.end - start));
    let (buffer, outcome) = engine.read(file, start, to, buffer).await;
    outcome.map_err(StoreError::io("read", file.path()))?;
    if buffer.len() < to {
        let short = io::Error::from(ErrorKind::UnexpectedEof);
        return Err(StoreError::io("read", file.path())(short));
    }
    Ok((buffer, from..to))
}

impl Store {
    /// The header recorded for a blob whose transfer was interrupted, if it is of the same object: resuming needs no
    /// request for it.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn recorded_header(&self, key: BlobKey, object: &Object) -> Result<Option<Bytes>, StoreError> {
        let object = object.clone();
        self.blocking(move |store| {
            let found = store.inner.index.partial(&key)?;
            Ok(found.filter(|(record, _, _)| record.object.size == object.size).map(|(_, header, _)| header))
        })
        .await
    }

    /// A blob that is arriving right now.
    pub fn arriving(&self, key: &BlobKey) -> Option<Arc<PartialBlob>> {
        lock(&self.inner.active).get(key).cloned()
    }

    /// Blobs that are thrown away from now on, because their bytes turned out to be wrong. What was served of them must
    /// be forgotten.
    pub fn discarded(&self) -> broadcast::Receiver<BlobKey> {
        self.inner.discarded.subscribe()
    }

    /// Complete blobs that are not from now on, because something of them was lost on the disk: their manifest, their
    /// header, some chunks, the right length. They will arrive anew, perhaps in another file, so whoever has one open
    /// must let go of it and look again. What was read of it and compared with its checksums stays right, unlike that of
    /// [`Store::discarded`]. Not told of those that are removed, which nobody uses.
    pub fn replaced(&self) -> broadcast::Receiver<BlobKey> {
        self.inner.replaced.subscribe()
    }

    pub(crate) fn tell_replaced(&self, key: BlobKey) {
        // Nobody may be listening.
        let _ = self.inner.replaced.send(key);
    }

    /// Waits until some blob begins to arrive after the future was made.
    pub fn begun(&self) -> Notified<'_> {
        self.inner.begun.notified()
    }

    /// Starts a blob, or resumes it where an earlier run was interrupted. Only one caller at a time may have a blob
    /// of a key open.
    ///
    /// # Errors
    /// [`StoreError::Full`] when the disk has no room, [`StoreError::Io`].
    pub async fn begin(
        &self,
        wanted: WantedBlob,
        reservation: &Reservation,
    ) -> Result<Arc<PartialBlob>, StoreError> {
        let blob_len = wanted.placement.blob_len();
        let (partial, is_new) = self.blocking(move |store| store.take_up(wanted)).await?;
        if is_new {
            reservation.redeem(blob_len);
        }
        partial.ensure_literal(self).await?;
        Ok(partial)
    }

    /// Takes up an interrupted blob as it is recorded, for those who read what is here of it while nobody brings the rest.
    ///
    /// # Errors
    /// [`StoreError::Index`], [`StoreError::Io`].
    pub async fn take_up_recorded(&self, key: BlobKey) -> Result<Option<Arc<PartialBlob>>, StoreError> {
        self.blocking(move |store| {
            let _beginning = lock(&store.inner.beginning);
            // It may have become complete a moment ago: its manifest comes first, and its record goes after.
            if store.has_blob(&key) {
                return Ok(None);
            }
            let Some((record, header, chunks)) = store.inner.index.partial(&key)? else { return Ok(None) };
            let placement = recorded_placement(&key, record.object.size, &header);
            let (Some(placement), false) = (placement, chunks.is_empty()) else { return Ok(None) };
            let found = std::fs::symlink_metadata(store.paths().blob(&key));
            if !found.is_ok_and(|found| found.is_file() && found.len() == placement.blob_len()) {
                // To be made anew, by someone who has room promised.
                return Ok(None);
            }
            let (url, object) = (record.url, record.object);
            let wanted = WantedBlob { key, url, object, header, placement: Arc::new(placement) };
            store.take_up_alone(wanted).map(|(partial, is_new)| (!is_new).then_some(partial))
        })
        .await
    }

    /// One at a time: a caller that went away while its file was made may come back before that has ended.
    fn take_up(&self, wanted: WantedBlob) -> Result<(Arc<PartialBlob>, bool), StoreError> {
        let _beginning = lock(&self.inner.beginning);
        self.take_up_alone(wanted)
    }

    /// The caller holds `beginning`.
    fn take_up_alone(&self, wanted: WantedBlob) -> Result<(Arc<PartialBlob>, bool), StoreError> {
        if let Some(partial) = self.still_open(&wanted) {
            return Ok((partial, false));
        }
        let blob_len = wanted.placement.blob_len();
        let (partial, is_new) = self.open_partial(wanted)?;
        if is_new {
            lock(&self.inner.usage).allocate(blob_len);
        }
        let partial = Arc::new(partial);
        {
            let cached = lock(&self.inner.cached);
            partial.file.set_cached(cached.contains(&partial.key()));
            if let Some(landing) = lock(&self.inner.landings).get(&partial.key()) {
                partial.land_in(Weak::clone(landing));
            }
            lock(&self.inner.active).insert(partial.key(), Arc::clone(&partial));
        }
        self.inner.begun.notify_waiters();
        Ok((partial, is_new))
    }

    /// A transfer that was just given up may be taken up again before its file is closed.
    fn still_open(&self, wanted: &WantedBlob) -> Option<Arc<PartialBlob>> {
        let active = lock(&self.inner.active);
        let partial = active.get(&wanted.key)?;
        // The key stands for the object's content; the same content may have another name by now.
        let same = partial.wanted.object.size == wanted.object.size && partial.wanted.header == wanted.header;
        same.then(|| Arc::clone(partial))
    }

    fn open_partial(&self, wanted: WantedBlob) -> Result<(PartialBlob, bool), StoreError> {
        let inner = &self.inner;
        let path = inner.paths.blob(&wanted.key);
        let mut state = State::new(&wanted.placement);
        let recorded = inner.index.partial(&wanted.key)?;
        let same = |record: &PartialRecord, header: &Bytes| {
            record.object.size == wanted.object.size && *header == wanted.header
        };
        let resumable = recorded.as_ref().filter(|(record, header, _)| same(record, header));
        if let Some((_, _, chunks)) = resumable
            // A crash between sealing and its manifest leaves a file that only root may write to.
            && set_mode(&path, 0o644).is_ok()
            && let Ok(file) = inner.engine.open(&path, Access::Write)
            && file.len() == wanted.placement.blob_len()
        {
            state.restore(&wanted.placement, chunks);
            return Ok((self.partial_of(wanted, file, state), false));
        }
        let had_file = is_file(&path);
        self.discard(&[wanted.key], recorded.is_some())?;
        if had_file {
            self.tell_replaced(wanted.key);
        }
        let directory = inner.paths.blob_directory(&wanted.key);
        if !directory.exists() {
            // Once for each of the 256: a directory whose own name is lost takes its blobs with it.
            let blobs = inner.paths.blobs();
            let made = inner
                .engine
                .create_directories(&directory)
                .and_then(|()| inner.engine.sync_directory(&blobs));
            made.map_err(|error| self.disk_error("create", &directory, 0, error))?;
        }
        let created = inner.engine.create(&path, wanted.placement.blob_len());
        let file = created
            .map_err(|error| self.disk_error("allocate", &path, wanted.placement.blob_len(), error))?;
        Ok((self.partial_of(wanted, file, state), true))
    }

    fn partial_of(&self, wanted: WantedBlob, file: Arc<IoFile>, state: State) -> PartialBlob {
        let engine = Arc::clone(&self.inner.engine);
        PartialBlob {
            wanted,
            file,
            engine,
            gate: self.inner.gate.clone(),
            state: Mutex::new(state),
            advanced: Notify::new(),
            landing: RwLock::default(),
            literal: OnceCell::new(),
            name_is_durable: AtomicBool::new(false),
        }
    }

    /// Throws away what has arrived of a blob, because it turned out to be wrong.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Index`].
    pub async fn discard_partial(&self, partial: &Arc<PartialBlob>) -> Result<(), StoreError> {
        let key = partial.key();
        lock(&self.inner.active).remove(&key);
        // Nobody may be listening.
        let _ = self.inner.discarded.send(key);
        partial.wake();
        self.blocking(move |store| store.discard(&[key], true)).await
    }

    /// Removes blobs' files and records. What readers have open they keep.
    pub(crate) fn discard(&self, keys: &[BlobKey], recorded: bool) -> Result<(), StoreError> {
        let inner = &self.inner;
        // What is being recorded of them comes first, to be forgotten with the rest.
        let _recording = recorded.then(|| lock(&inner.recording));
        for key in keys {
            let found = std::fs::symlink_metadata(inner.paths.blob(key));
            let len = found.as_ref().map_or(0, |found| if found.is_file() { found.len() } else { 0 });
            if found.is_ok_and(|found| found.is_dir()) {
                remove_stranger(&inner.paths.blob(key))?;
            }
            // The manifest goes first: a blob whose data is going must not look complete.
            for path in [inner.paths.blob_manifest(key), inner.paths.blob(key), inner.paths.blob_header(key)]
            {
                inner.engine.remove(&path).map_err(StoreError::io("remove", &path))?;
            }
            lock(&inner.usage).release(len);
        }
        if recorded { inner.index.forget_partials(keys, true) } else { Ok(()) }
    }
}

/// Where the bytes of a blob go of which no more is known than was recorded.
pub(crate) fn recorded_placement(key: &BlobKey, object_size: u64, header: &Bytes) -> Option<Placement> {
    match key.layout {
        Layout::Original => Some(Placement::original(object_size)),
        Layout::Aligned => {
            let header = SafetensorsHeader::parse(header.clone(), object_size);
            header.and_then(|header| header.aligned()).ok()
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "32 bits count 32 PiB of chunks")]
pub(crate) fn count(len: usize) -> u32 {
    len as u32
}

#[expect(clippy::cast_possible_truncation, reason = "only 64-bit targets are supported")]
pub(crate) fn to_usize(len: u64) -> usize {
    len as usize
}
