//! Finding rot: stored chunks are read and compared with what was recorded.

use std::{io::IoSliceMut, num::NonZeroU64, ops::Range, path::PathBuf, sync::Arc};

use bytes::Bytes;
use rustix::{
    fs::{Advice, fadvise},
    io::{ReadWriteFlags, preadv2},
};
use weightd_types::{BlobKey, ByteRange, Crc32c, Piece, Placement, SnapshotKey};

use crate::{
    BlobManifest, SnapshotEntry, SnapshotManifest, Store, StoreError,
    gate::write_to_the_end,
    index::{ChunkUpdate, PartialRecord},
    io::{Access, Buffer, IoFile, is_cached},
    manifest::parse_blob_manifest,
    partial::read_span,
    paths::Paths,
    snapshots::set_mode,
    store::{lock, now},
    tiers::{Home, Tier},
    usage::is_file,
};

/// What is taken from the page cache at once: it is still in the processor's caches when it is summed.
const AT_ONCE: usize = 256 << 10;

/// A complete blob, open for reading.
#[derive(Debug)]
pub struct StoredBlob {
    store: Store,
    manifest: BlobManifest,
    placement: Placement,
    header: Bytes,
    file: Arc<IoFile>,
    /// The tier it is in, if it is not the store's own.
    tier: Option<Arc<Tier>>,
}

/// A part of an object that lies in one chunk of its blob, or in its header file.
#[derive(Debug, Clone, Copy)]
pub enum ObjectPart {
    /// Bytes of the header file.
    Header(ByteRange),
    /// Bytes of the blob, all of one chunk.
    Chunk(u32, ByteRange),
}

impl StoredBlob {
    /// Whether it is in a read-only tier, where nothing can be repaired.
    pub fn is_in_tier(&self) -> bool {
        self.tier.is_some()
    }

    /// Where a range of the object lies, in its order.
    pub fn parts_of(&self, object: ByteRange) -> Vec<ObjectPart> {
        let replaced = ByteRange::new(0, self.placement.replaced()).intersect(&object);
        let header = (!replaced.is_empty()).then_some(ObjectPart::Header(replaced));
        let pieces = self.placement.pieces();
        let first = pieces.partition_point(|piece| piece.object.end <= object.start);
        let within = pieces[first..].iter().take_while(|piece| piece.object.start < object.end);
        let part = |piece: &Piece| {
            let both = piece.object.intersect(&object);
            let blob = ByteRange::at(piece.blob + (both.start - piece.object.start), both.len());
            ObjectPart::Chunk(piece.chunk, blob)
        };
        header.into_iter().chain(within.map(part)).collect()
    }

    /// Reads a part of the object, checked.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Io`].
    pub async fn read_part(&self, part: ObjectPart) -> Result<Bytes, StoreError> {
        match part {
            ObjectPart::Header(range) => Ok(self.header.slice(index(range.start)..index(range.end))),
            ObjectPart::Chunk(chunk, range) => {
                let (buffer, good) = self.check_chunk(chunk, self.store.pool().acquire().await).await?;
                if !good {
                    return Err(StoreError::Damaged { path: self.path().to_owned(), chunk });
                }
                let start = self.placement.chunk_range(chunk).start;
                Ok(Bytes::copy_from_slice(&buffer[index(range.start - start)..index(range.end - start)]))
            }
        }
    }

    /// What is known of it.
    pub fn manifest(&self) -> &BlobManifest {
        &self.manifest
    }

    /// Where its object's bytes lie.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Its file.
    pub fn path(&self) -> &std::path::Path {
        self.file.path()
    }

    /// The object's own header when the layout replaces it, else empty.
    pub fn header(&self) -> &Bytes {
        &self.header
    }

    /// Reads from the page cache what is there, from now on. A reader's blob, not a verifier's: what is compared then is not
    /// what the disk holds.
    pub fn read_cached(&self) {
        self.file.set_cached(true);
    }

    /// Reads a range that lies in one chunk, unchecked: a buffer, and where in it the range lies.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub async fn read(&self, range: ByteRange, buffer: Buffer) -> Result<(Buffer, Range<usize>), StoreError> {
        read_span(self.store.engine().as_ref(), &self.file, range, buffer).await
    }

    /// Reads a chunk and says whether it is what was recorded.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the disk cannot read it. A file cut short is a bad chunk, not an error.
    pub async fn check_chunk(&self, chunk: u32, buffer: Buffer) -> Result<(Buffer, bool), StoreError> {
        let engine = self.store.engine();
        let range = self.placement.chunk_range(chunk);
        self.store.metrics().checked_chunks.inc();
        if range.end > self.file.len() {
            return Ok((buffer, false));
        }
        let (buffer, within) = read_span(engine.as_ref(), &self.file, range, buffer).await?;
        let good = Crc32c::of(&buffer[within]) == self.manifest.chunk_crc32c[chunk as usize];
        if !good {
            self.store.metrics().bad_chunks.inc();
        }
        Ok((buffer, good))
    }

    /// Takes a chunk from the page cache, without waiting for the disk. Says whether all of it was there, and is what was
    /// recorded; else the buffer is as good as empty.
    pub fn take_cached_chunk(&self, chunk: u32, buffer: &mut Buffer) -> bool {
        let range = self.placement.chunk_range(chunk);
        let len = index(range.len());
        buffer.clear();
        if range.end > self.file.len() || buffer.capacity() < len || !is_cached(self.file.buffered(), range) {
            return false;
        }
        let memory = &mut buffer.spare_mut()[..len];
        let (mut taken, mut crc) = (0, Crc32c::EMPTY);
        while taken < len {
            let behind = len.min(taken + AT_ONCE);
            let part = &mut [IoSliceMut::new(&mut memory[taken..behind])];
            let at = range.start + taken as u64;
            match preadv2(self.file.buffered(), part, at, ReadWriteFlags::NOWAIT) {
                Ok(0) | Err(_) => return false,
                Ok(read) => {
                    crc = crc.append(&memory[taken..taken + read]);
                    taken += read;
                }
            }
        }
        buffer.set_len(len);
        crc == self.manifest.chunk_crc32c[chunk as usize]
    }

    /// Has the pages of a chunk read anew: what is right on the disk may be wrong in memory.
    pub fn drop_cached_chunk(&self, chunk: u32) {
        let range = self.placement.chunk_range(chunk);
        let dropped =
            fadvise(self.file.buffered(), range.start, NonZeroU64::new(range.len()), Advice::DontNeed);
        if let Err(error) = dropped {
            tracing::warn!(path = %self.path().display(), %error, "pages cannot be dropped");
        }
    }

    /// Writes right bytes over a bad chunk. `buffer` holds the whole chunk.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when these bytes are not right either; nothing is written then.
    pub async fn repair_chunk(&self, chunk: u32, buffer: Buffer) -> Result<(), StoreError> {
        if Crc32c::of(&buffer) != self.manifest.chunk_crc32c[chunk as usize] {
            return Err(StoreError::Damaged { path: self.path().to_owned(), chunk });
        }
        let path = self.path().to_owned();
        let file = self.store.blocking(move |store| store.open_sealed(&path)).await?;
        let (pass, start) = (self.store.inner.gate.enter()?, self.placement.chunk_range(chunk).start);
        let outcome = write_to_the_end(self.store.engine(), &file, start, Arc::new(buffer), pass).await;
        outcome.map_err(StoreError::io("write", self.path()))?;
        let path = self.path().to_owned();
        self.store
            .blocking(move |store| {
                store.inner.engine.sync(&file).map_err(StoreError::io("sync", &path))?;
                set_mode(&path, 0o444)
            })
            .await?;
        self.store.metrics().repaired_chunks.inc();
        Ok(())
    }

    /// Says that a chunk of a tier's copy is wrong or cannot be read: the blob is not read from there any more, and if the chunk is
    /// wrong, never. One that turns out to be right now says nothing against the copy.
    ///
    /// # Errors
    /// [`StoreError::Index`], [`StoreError::Io`].
    pub async fn condemn(&self, chunk: u32) -> Result<(), StoreError> {
        let Some(tier) = self.tier.clone() else { return Ok(()) };
        let key = self.manifest.key;
        let checked = self.check_chunk(chunk, self.store.pool().acquire().await).await;
        let is_wrong = match checked.map(|(_, good)| good) {
            Ok(true) => return Ok(()),
            Ok(false) => true,
            // A disk that cannot be read now may be another time.
            Err(_) => false,
        };
        let condemning = move |store: &Store| {
            if is_wrong {
                return store.condemn(&tier, key);
            }
            store.disown(&tier, key);
            Ok(())
        };
        self.store.blocking(condemning).await
    }

    /// Turns the blob back into a partial one that lacks the chunks given, because they cannot be repaired now. Its
    /// snapshots are no longer complete; the next prefetch fetches just those chunks.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Index`].
    pub async fn demote(&self, lacking: &[u32]) -> Result<(), StoreError> {
        if self.tier.is_some() {
            return self.condemn(lacking.first().copied().unwrap_or(0)).await;
        }
        let mut chunks = Vec::new();
        for chunk in (0..self.placement.chunk_count()).filter(|chunk| !lacking.contains(chunk)) {
            let (buffer, good) = self.check_chunk(chunk, self.store.pool().acquire().await).await?;
            if good {
                let base = self.placement.chunk_range(chunk).start;
                let crc = |&piece: &u32| {
                    let range = self.placement.pieces()[piece as usize].blob_range();
                    Crc32c::of(&buffer[index(range.start - base)..index(range.end - base)])
                };
                chunks.push((chunk, self.placement.pieces_of_chunk(chunk).iter().map(crc).collect()));
            }
        }
        let BlobManifest { key, url, object, .. } = self.manifest.clone();
        let record = PartialRecord { url, object, updated_at: now() };
        let update = ChunkUpdate { key, record, header: self.header.clone(), chunks };
        self.store.blocking(move |store| store.forget_manifest(&update)).await
    }
}

/// Whether a blob's manifest can be believed, and its file is as long as that says.
fn is_whole(paths: &Paths, key: &BlobKey) -> bool {
    std::fs::symlink_metadata(paths.blob(key)).is_ok_and(|found| {
        found.is_file() && manifest_at(paths, key).is_ok_and(|manifest| manifest.blob_bytes == found.len())
    })
}

fn manifest_at(paths: &Paths, key: &BlobKey) -> Result<BlobManifest, StoreError> {
    let path = paths.blob_manifest(key);
    let bytes = std::fs::read(&path).map_err(StoreError::io("read", &path))?;
    let damaged = |why: String| StoreError::Manifest { path: path.clone(), why };
    let manifest = parse_blob_manifest(&bytes).map_err(|error| damaged(error.to_string()))?;
    if manifest.key == *key {
        Ok(manifest)
    } else {
        Err(damaged("the manifest speaks of another blob".to_owned()))
    }
}

fn index(offset: u64) -> usize {
    crate::partial::to_usize(offset)
}

impl Store {
    /// Opens a complete blob; `None` when it is not complete.
    ///
    /// # Errors
    /// [`StoreError::Manifest`] when its manifest or header file is damaged.
    pub async fn stored_blob(&self, key: BlobKey) -> Result<Option<StoredBlob>, StoreError> {
        self.blocking(move |store| {
            let Some(Home::Tier(tier)) = store.home_of(&key) else { return store.open_blob(key, None) };
            let why = match store.open_blob(key, Some(Arc::clone(&tier))) {
                Ok(Some(blob)) => return Ok(Some(blob)),
                Ok(None) => "its manifest is missing".to_owned(),
                Err(error) => error.to_string(),
            };
            // It is as if the tier did not have it, until that comes anew: what cannot be read now may be another time.
            tracing::warn!(blob = %key, tier = %tier.directory().display(), why, "unusable in a read-only tier");
            store.disown(&tier, key);
            store.open_blob(key, None)
        })
        .await
    }

    /// A tier's copy of a blob in which something is wrong: what is right in it need not be fetched.
    ///
    /// # Errors
    /// [`StoreError::Closed`].
    pub async fn condemned_blob(&self, key: BlobKey) -> Result<Option<StoredBlob>, StoreError> {
        self.blocking(move |store| {
            let tiers = store.inner.tiers.all();
            let damaged = tiers.iter().filter(|tier| tier.has_condemned(&key));
            // One that cannot be opened at all is of no use.
            Ok(damaged
                .into_iter()
                .find_map(|tier| store.open_blob(key, Some(Arc::clone(tier))).ok().flatten()))
        })
        .await
    }

    /// Opens a blob's file in a tier, or in the store's own directory.
    fn open_blob(&self, key: BlobKey, tier: Option<Arc<Tier>>) -> Result<Option<StoredBlob>, StoreError> {
        let paths = tier.as_ref().map_or(self.paths(), |tier| tier.paths());
        let path = paths.blob_manifest(&key);
        let damaged = |why: String| StoreError::Manifest { path: path.clone(), why };
        if !path.exists() {
            return Ok(None);
        }
        let manifest = manifest_at(paths, &key)?;
        let header = match manifest.header_bytes {
            0 => Bytes::new(),
            _ => std::fs::read(paths.blob_header(&key)).unwrap_or_default().into(),
        };
        let placement = manifest.placement(&header).map_err(|error| damaged(error.to_string()))?;
        let blob = paths.blob(&key);
        if !is_file(&blob) {
            return Err(damaged("the blob's file is missing".to_owned()));
        }
        let opened = self.inner.engine.open(&blob, Access::Read);
        let file = opened.map_err(StoreError::io("open", &blob))?;
        if file.len() > manifest.blob_bytes {
            return Err(damaged("the blob's file is longer than it should be".to_owned()));
        }
        Ok(Some(StoredBlob { store: self.clone(), manifest, placement, header, file, tier }))
    }

    /// Whether a blob is complete.
    ///
    /// # Errors
    /// [`StoreError::Closed`].
    pub async fn is_stored(&self, key: BlobKey) -> Result<bool, StoreError> {
        self.blocking(move |store| Ok(store.has_blob(&key))).await
    }

    /// Whether a blob is complete: its manifest can be believed, and its file is as long as that says. Blocks.
    pub fn has_blob(&self, key: &BlobKey) -> bool {
        self.whole_blob(key).is_some()
    }

    /// The file of a blob that is complete. Blocks.
    pub fn whole_blob(&self, key: &BlobKey) -> Option<PathBuf> {
        // Where a tier's copy is not what it should be, the store's own may be.
        let homes = [self.paths_of(key), self.paths().clone()];
        homes.into_iter().find(|paths| is_whole(paths, key)).map(|paths| paths.blob(key))
    }

    /// Where the directories of complete snapshots are, each named by its key: the store's own, and those of tiers.
    pub fn snapshots_directories(&self) -> Vec<PathBuf> {
        let tiers = self.inner.tiers.all();
        let of_tiers = tiers.iter().map(|tier| tier.paths().snapshots());
        std::iter::once(self.paths().snapshots()).chain(of_tiers).collect()
    }

    /// Where a blob's file is, or will be.
    pub fn blob_path(&self, key: &BlobKey) -> PathBuf {
        self.paths_of(key).blob(key)
    }

    /// Length of a blob's file, if it is complete.
    ///
    /// # Errors
    /// [`StoreError::Closed`].
    pub async fn blob_length(&self, key: BlobKey) -> Result<Option<u64>, StoreError> {
        self.blocking(move |store| Ok(store.blob_length_now(&key))).await
    }

    /// As [`Store::blob_length`], for those who may block.
    pub fn blob_length_now(&self, key: &BlobKey) -> Option<u64> {
        let manifest = self.has_blob(key).then(|| self.manifest_of(key).ok()).flatten();
        manifest.map(|manifest| manifest.blob_bytes)
    }

    pub(crate) fn manifest_of(&self, key: &BlobKey) -> Result<BlobManifest, StoreError> {
        manifest_at(&self.paths_of(key), key)
    }

    /// Reads a complete blob whole, checked; for small ones such as indices.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::NotFound`].
    pub async fn read_blob(&self, key: BlobKey) -> Result<Vec<u8>, StoreError> {
        let not_found = || StoreError::NotFound { name: key.to_string() };
        let blob = self.stored_blob(key).await?.ok_or_else(not_found)?;
        let mut bytes = Vec::new();
        for chunk in 0..blob.placement.chunk_count() {
            let (buffer, good) = blob.check_chunk(chunk, self.pool().acquire().await).await?;
            if !good {
                return Err(StoreError::Damaged { path: blob.path().to_owned(), chunk });
            }
            bytes.extend_from_slice(&buffer[..index(blob.placement.chunk_range(chunk).len())]);
        }
        Ok(bytes)
    }

    /// Whether a snapshot was complete at some time: its directory is still there, also when a blob turned out damaged.
    ///
    /// # Errors
    /// [`StoreError::Closed`].
    pub async fn was_published(&self, key: SnapshotKey) -> Result<bool, StoreError> {
        self.blocking(move |store| Ok(store.paths().snapshot(&key).exists())).await
    }

    /// Objects of a snapshot whose blobs are complete.
    ///
    /// # Errors
    /// [`StoreError::Closed`].
    pub async fn stored(&self, manifest: Arc<SnapshotManifest>) -> Result<Vec<SnapshotEntry>, StoreError> {
        self.blocking(move |store| {
            let stored = manifest.objects.iter().filter(|entry| store.has_blob(&entry.blob));
            Ok(stored.cloned().collect())
        })
        .await
    }

    /// Says that a blob is not complete after all: the snapshots that need it are not either.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub async fn mark_missing(&self, key: BlobKey) -> Result<(), StoreError> {
        self.blocking(move |store| {
            let _changing = lock(&store.inner.changing);
            store.mark_users_incomplete(&key)
        })
        .await
    }

    /// Removes a complete blob whose manifest or header cannot be believed, so that it is fetched again.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub async fn discard_blob(&self, key: BlobKey) -> Result<(), StoreError> {
        self.blocking(move |store| {
            let _changing = lock(&store.inner.changing);
            store.mark_users_incomplete(&key)?;
            store.discard(&[key], true)?;
            store.tell_replaced(key);
            Ok(())
        })
        .await
    }

    fn open_sealed(&self, path: &std::path::Path) -> Result<Arc<IoFile>, StoreError> {
        // Sealed files are read-only for everyone but root.
        set_mode(path, 0o644)?;
        self.inner.engine.open(path, Access::Write).map_err(StoreError::io("open", path))
    }

    fn forget_manifest(&self, update: &ChunkUpdate) -> Result<(), StoreError> {
        let _changing = lock(&self.inner.changing);
        self.mark_users_incomplete(&update.key)?;
        self.inner.index.replace_partial(update)?;
        let (engine, manifest) = (&self.inner.engine, self.paths().blob_manifest(&update.key));
        engine.remove(&manifest).map_err(StoreError::io("remove", &manifest))?;
        self.tell_replaced(update.key);
        // Readable as before: it may be mounted.
        set_mode(&self.paths().blob(&update.key), 0o644)?;
        let directory = self.paths().blob_directory(&update.key);
        engine.sync_directory(&directory).map_err(StoreError::io("sync", &directory))
    }

    fn mark_users_incomplete(&self, blob: &BlobKey) -> Result<(), StoreError> {
        let users: Vec<_> = {
            let catalog = self.catalog();
            let uses = |objects: &[SnapshotEntry]| objects.iter().any(|entry| entry.blob == *blob);
            catalog.iter().filter(|(_, entry)| uses(&entry.manifest.objects)).map(|(key, _)| *key).collect()
        };
        users.iter().try_for_each(|key| self.mark_incomplete(key))
    }
}
