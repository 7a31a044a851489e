//! The index: what changes while the store is in use.
//!
//! Partial chunk maps, pins, recency, jobs, wishes, damage in tiers and lengths of blobs that still arrive live in an embedded database. Everything that is complete is described
//! by manifests instead, so losing this file loses no complete blob.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use bytes::Bytes;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};
use weightd_types::{BlobKey, Crc32c, Object, Selection, SnapshotKey, SourceUri};

use crate::{
    StoreError, Wish,
    io::{IndexBackend, IoEngine},
    store::{MICROS, now},
};

/// Blob to the object being fetched (JSON) and the object's own header.
const PARTIALS: TableDefinition<&str, (&[u8], &[u8])> = TableDefinition::new("partials");
/// Blob and chunk to the CRC-32C of each of the chunk's pieces, little-endian, in blob order.
const CHUNKS: TableDefinition<(&str, u32), &[u8]> = TableDefinition::new("chunks");
/// Snapshot to when it was pinned.
const PINS: TableDefinition<&str, u64> = TableDefinition::new("pins");
/// Snapshot to when it was last used, in microseconds; in seconds, as long as an older agent wrote it.
const RECENCY: TableDefinition<&str, u64> = TableDefinition::new("recency");
/// Snapshot to the detached prefetch that asked for it (JSON).
const JOBS: TableDefinition<&str, &[u8]> = TableDefinition::new("jobs");

/// Snapshot to the lengths of its blobs in the manifest's order, little-endian, once it is shown before it is complete.
const LENGTHS: TableDefinition<&str, &[u8]> = TableDefinition::new("lengths");

/// Source and layout to what is wanted of it on this node, and the snapshots that are kept for that (JSON).
const WISHES: TableDefinition<&str, &[u8]> = TableDefinition::new("wishes");

/// A tier's copy of a blob, by directory and blob, to when something in it was found to be wrong.
const CONDEMNED: TableDefinition<&str, u64> = TableDefinition::new("condemned");

/// Less is a time in seconds, more is one in microseconds.
const SECONDS_END: u64 = 1 << 40;

/// What the database may ask of the disk at once.
const INDEX_GROWTH: u64 = 1 << 20;

/// A blob that is still arriving, as recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PartialRecord {
    pub(crate) url: String,
    pub(crate) object: Object,
    /// Seconds since 1970.
    pub(crate) updated_at: u64,
}

/// Piece checksums of the recorded chunks.
pub(crate) type ChunkMap = BTreeMap<u32, Vec<Crc32c>>;

/// A prefetch that goes on by itself, also after a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Where from.
    pub source: SourceUri,
    /// Which objects.
    pub selection: Selection,
    /// Higher goes first.
    pub priority: i32,
    /// Whether to pin it once it is complete.
    pub pin: bool,
}

/// Chunks of one blob to record.
pub(crate) struct ChunkUpdate {
    pub(crate) key: BlobKey,
    pub(crate) record: PartialRecord,
    pub(crate) header: Bytes,
    pub(crate) chunks: Vec<(u32, Vec<Crc32c>)>,
}

/// The database.
#[derive(Debug)]
pub(crate) struct Index {
    /// `None` while it could not be opened again after the disk had failed.
    database: RwLock<Option<Database>>,
    engine: Arc<dyn IoEngine>,
    path: PathBuf,
    /// redb has one writer; waiting here instead keeps its own lock uncontended.
    writer: Mutex<()>,
}

impl Index {
    /// Opens the index, making it when missing. One that is damaged beyond repair is put aside, because a store
    /// without its index is whole.
    pub(crate) fn open(engine: &Arc<dyn IoEngine>, path: PathBuf) -> Result<Self, StoreError> {
        let database = RwLock::new(Some(open_database(engine.as_ref(), &path)?));
        Ok(Self { database, engine: Arc::clone(engine), path, writer: Mutex::new(()) })
    }

    fn write(
        &self,
        durability: Durability,
        change: impl Fn(&mut Tables<'_>) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.attempt(|database| write_to(database, durability, &change))
    }

    fn read<T>(
        &self,
        get: impl Fn(&redb::ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        self.attempt(|database| get(&database.begin_read()?))
    }

    /// After one failure of the disk the database refuses everything until it is opened again, also when the disk is
    /// well by then (someone made room on it).
    fn attempt<T>(&self, work: impl Fn(&Database) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        let outcome = match &*self.database.read().unwrap_or_else(PoisonError::into_inner) {
            Some(database) => work(database),
            None => Err(redb::Error::PreviousIo),
        };
        let Err(redb::Error::PreviousIo) = outcome else { return outcome.map_err(index_error(&self.path)) };
        let mut guard = self.database.write().unwrap_or_else(PoisonError::into_inner);
        // The old one lets go of the file first.
        *guard = None;
        let database = guard.insert(open_database(self.engine.as_ref(), &self.path)?);
        work(database).map_err(index_error(&self.path))
    }

    /// Records chunks whose data is durable. Durable when it returns.
    pub(crate) fn record_chunks(&self, updates: &[ChunkUpdate]) -> Result<(), StoreError> {
        self.write(Durability::Immediate, |tables| {
            updates.iter().try_for_each(|update| record(tables, update))
        })
    }

    /// What is recorded of a partial blob: object, its own header, chunks.
    pub(crate) fn partial(
        &self,
        key: &BlobKey,
    ) -> Result<Option<(PartialRecord, Bytes, ChunkMap)>, StoreError> {
        let name = key.to_string();
        self.read(|transaction| {
            let partials = transaction.open_table(PARTIALS)?;
            let Some(found) = partials.get(name.as_str())? else { return Ok(None) };
            let (record, header) = found.value();
            let Ok(record) = serde_json::from_slice(record) else { return Ok(None) };
            let header = Bytes::copy_from_slice(header);
            let mut chunks = ChunkMap::new();
            for entry in
                transaction.open_table(CHUNKS)?.range((name.as_str(), 0)..=(name.as_str(), u32::MAX))?
            {
                let (at, pieces) = entry?;
                chunks.insert(at.value().1, words(pieces.value()));
            }
            Ok(Some((record, header, chunks)))
        })
    }

    /// All partial blobs.
    pub(crate) fn partials(&self) -> Result<Vec<(BlobKey, PartialRecord)>, StoreError> {
        self.read(|transaction| {
            let mut found = Vec::new();
            for entry in transaction.open_table(PARTIALS)?.iter()? {
                let (key, value) = entry?;
                if let (Ok(key), Ok(record)) =
                    (BlobKey::from_str(key.value()), serde_json::from_slice(value.value().0))
                {
                    found.push((key, record));
                }
            }
            Ok(found)
        })
    }

    /// Records what is left of a blob that was complete, in place of whatever was recorded of it. Durable when it returns.
    pub(crate) fn replace_partial(&self, update: &ChunkUpdate) -> Result<(), StoreError> {
        self.write(Durability::Immediate, |tables| {
            forget(tables, &update.key)?;
            record(tables, update)
        })
    }

    /// Forgets partial blobs. Not durable by itself: recovery drops what a manifest or a missing file contradicts.
    pub(crate) fn forget_partials(&self, keys: &[BlobKey], durable: bool) -> Result<(), StoreError> {
        let durability = if durable { Durability::Immediate } else { Durability::None };
        self.write(durability, |tables| keys.iter().try_for_each(|key| forget(tables, key)))
    }

    pub(crate) fn set_pin(&self, key: &SnapshotKey, pinned_at: Option<u64>) -> Result<(), StoreError> {
        let name = key.to_string();
        self.write(Durability::Immediate, |tables| {
            match pinned_at {
                Some(at) => tables.pins.insert(name.as_str(), at)?,
                None => tables.pins.remove(name.as_str())?,
            };
            Ok(())
        })
    }

    /// Remembers a use. Not durable by itself: the next durable change carries it along.
    pub(crate) fn touch(&self, key: &SnapshotKey, used_at: u64) -> Result<(), StoreError> {
        let name = key.to_string();
        self.write(Durability::None, |tables| {
            tables.recency.insert(name.as_str(), used_at).map(drop).map_err(Into::into)
        })
    }

    /// Writes down how long the blobs of a snapshot will be. Durable when it returns.
    pub(crate) fn set_lengths(&self, key: &SnapshotKey, lengths: &[u64]) -> Result<(), StoreError> {
        let name = key.to_string();
        let bytes: Vec<u8> = lengths.iter().flat_map(|length| length.to_le_bytes()).collect();
        self.write(Durability::Immediate, |tables| {
            tables.lengths.insert(name.as_str(), bytes.as_slice()).map(drop).map_err(Into::into)
        })
    }

    pub(crate) fn lengths(&self, key: &SnapshotKey) -> Result<Option<Vec<u64>>, StoreError> {
        let name = key.to_string();
        self.read(|transaction| {
            let found = transaction.open_table(LENGTHS)?.get(name.as_str())?;
            let lengths =
                |bytes: &[u8]| bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
            Ok(found.map(|found| lengths(found.value())))
        })
    }

    /// Forgets pin, recency, job and lengths of a snapshot.
    pub(crate) fn forget_snapshot(&self, key: &SnapshotKey) -> Result<(), StoreError> {
        let name = key.to_string();
        self.write(Durability::Immediate, |tables| {
            tables.pins.remove(name.as_str())?;
            tables.recency.remove(name.as_str())?;
            tables.jobs.remove(name.as_str())?;
            tables.lengths.remove(name.as_str())?;
            Ok(())
        })
    }

    pub(crate) fn set_job(&self, key: &SnapshotKey, job: Option<&Job>) -> Result<(), StoreError> {
        let name = key.to_string();
        self.write(Durability::Immediate, |tables| {
            match job {
                Some(job) => tables.jobs.insert(name.as_str(), json(job).as_slice())?,
                None => tables.jobs.remove(name.as_str())?,
            };
            Ok(())
        })
    }

    /// Writes a wish down, or forgets it. Durable when it returns.
    pub(crate) fn set_wish(&self, name: &str, wish: Option<&Wish>) -> Result<(), StoreError> {
        self.write(Durability::Immediate, |tables| {
            match wish {
                Some(wish) => tables.wishes.insert(name, json(wish).as_slice())?,
                None => tables.wishes.remove(name)?,
            };
            Ok(())
        })
    }

    /// What is wanted on this node.
    pub(crate) fn wishes(&self) -> Result<Vec<Wish>, StoreError> {
        self.read(|transaction| {
            let mut found = Vec::new();
            for entry in transaction.open_table(WISHES)?.iter()? {
                found.extend(serde_json::from_slice(entry?.1.value()).ok());
            }
            Ok(found)
        })
    }

    /// Pins, by snapshot.
    pub(crate) fn pins(&self) -> Result<BTreeMap<String, u64>, StoreError> {
        self.times(PINS)
    }

    /// Last uses in microseconds, by snapshot.
    pub(crate) fn recency(&self) -> Result<BTreeMap<String, u64>, StoreError> {
        let mut times = self.times(RECENCY)?;
        times.values_mut().filter(|at| **at < SECONDS_END).for_each(|at| *at *= MICROS);
        Ok(times)
    }

    /// Writes down that something is wrong in a tier's copy of a blob. Durable when it returns.
    pub(crate) fn condemn(&self, name: &str) -> Result<(), StoreError> {
        self.write(Durability::Immediate, |tables| {
            tables.condemned.insert(name, now()).map(drop).map_err(Into::into)
        })
    }

    /// Copies of blobs in tiers in which something is wrong.
    pub(crate) fn condemned(&self) -> Result<BTreeMap<String, u64>, StoreError> {
        self.times(CONDEMNED)
    }

    fn times(&self, table: TableDefinition<&'static str, u64>) -> Result<BTreeMap<String, u64>, StoreError> {
        self.read(|transaction| {
            let mut found = BTreeMap::new();
            for entry in transaction.open_table(table)?.iter()? {
                let (key, value) = entry?;
                found.insert(key.value().to_owned(), value.value());
            }
            Ok(found)
        })
    }

    /// Detached prefetches that have not ended.
    pub(crate) fn jobs(&self) -> Result<Vec<(SnapshotKey, Job)>, StoreError> {
        self.read(|transaction| {
            let mut found = Vec::new();
            for entry in transaction.open_table(JOBS)?.iter()? {
                let (key, value) = entry?;
                if let (Ok(key), Ok(job)) = (key.value().parse(), serde_json::from_slice(value.value())) {
                    found.push((key, job));
                }
            }
            Ok(found)
        })
    }

    /// Makes every earlier change durable, and lets go of the file. Nothing may be asked of it afterwards.
    pub(crate) fn close(&self) -> Result<(), StoreError> {
        let outcome = self.write(Durability::Immediate, |_| Ok(()));
        *self.database.write().unwrap_or_else(PoisonError::into_inner) = None;
        outcome
    }
}

/// Opens the database and reads all of it once. Bad pages show themselves only when they are read, the library panics
/// over some of them, and by then the store would be in use.
fn open_database(engine: &dyn IoEngine, path: &Path) -> Result<Database, StoreError> {
    let opened = match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| try_open(engine, path))) {
        Ok(Err(StoreError::Index { source, .. })) if is_damage(&source) => Err(source.to_string()),
        Ok(other) => Ok(other?),
        Err(_) => Err("the database library cannot make sense of it".to_owned()),
    };
    opened.or_else(|problem| {
        let aside = path.with_extension("redb.damaged");
        tracing::warn!(index = %path.display(), aside = %aside.display(), problem, "the index is damaged; starting a new one");
        engine.rename(path, &aside).map_err(StoreError::io("put aside", path))?;
        try_open(engine, path)
    })
}

fn try_open(engine: &dyn IoEngine, path: &Path) -> Result<Database, StoreError> {
    let is_new = !path.exists();
    let backend = engine.index_backend(path).map_err(StoreError::io("open", path))?;
    let created = Database::builder().set_cache_size(16 << 20).create_with_backend(IndexBackend(backend));
    let database = created.map_err(|error| index_error(path)(redb::Error::from(error)))?;
    // Reading needs the tables to be there.
    write_to(&database, Durability::Immediate, &|_| Ok(()))
        .and_then(|()| read_all(&database))
        .map_err(index_error(path))?;
    if let Some(directory) = path.parent().filter(|_| is_new) {
        // What is recorded in it is durable only if its name is.
        engine.sync_directory(directory).map_err(StoreError::io("sync", directory))?;
    }
    Ok(database)
}

fn read_all(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_read()?;
    for times in [PINS, RECENCY, CONDEMNED] {
        transaction.open_table(times)?.iter()?.try_for_each(|entry| entry.map(drop))?;
    }
    transaction.open_table(PARTIALS)?.iter()?.try_for_each(|entry| entry.map(drop))?;
    transaction.open_table(CHUNKS)?.iter()?.try_for_each(|entry| entry.map(drop))?;
    for values in [JOBS, LENGTHS, WISHES] {
        transaction.open_table(values)?.iter()?.try_for_each(|entry| entry.map(drop))?;
    }
    Ok(())
}

fn write_to(
    database: &Database,
    durability: Durability,
    change: &impl Fn(&mut Tables<'_>) -> Result<(), redb::Error>,
) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(durability)?;
    {
        let mut tables = Tables {
            partials: transaction.open_table(PARTIALS)?,
            chunks: transaction.open_table(CHUNKS)?,
            pins: transaction.open_table(PINS)?,
            recency: transaction.open_table(RECENCY)?,
            jobs: transaction.open_table(JOBS)?,
            lengths: transaction.open_table(LENGTHS)?,
            wishes: transaction.open_table(WISHES)?,
            condemned: transaction.open_table(CONDEMNED)?,
        };
        change(&mut tables)?;
    }
    Ok(transaction.commit()?)
}

fn record(tables: &mut Tables<'_>, update: &ChunkUpdate) -> Result<(), redb::Error> {
    let key = update.key.to_string();
    tables.partials.insert(key.as_str(), (json(&update.record).as_slice(), update.header.as_ref()))?;
    for (chunk, pieces) in &update.chunks {
        let value: Vec<u8> = pieces.iter().flat_map(|crc| crc.0.to_le_bytes()).collect();
        tables.chunks.insert((key.as_str(), *chunk), value.as_slice())?;
    }
    Ok(())
}

fn forget(tables: &mut Tables<'_>, key: &BlobKey) -> Result<(), redb::Error> {
    let name = key.to_string();
    tables.partials.remove(name.as_str())?;
    tables.chunks.retain_in((name.as_str(), 0)..=(name.as_str(), u32::MAX), |_, _| false)?;
    Ok(())
}

struct Tables<'t> {
    partials: redb::Table<'t, &'static str, (&'static [u8], &'static [u8])>,
    chunks: redb::Table<'t, (&'static str, u32), &'static [u8]>,
    pins: redb::Table<'t, &'static str, u64>,
    recency: redb::Table<'t, &'static str, u64>,
    jobs: redb::Table<'t, &'static str, &'static [u8]>,
    lengths: redb::Table<'t, &'static str, &'static [u8]>,
    wishes: redb::Table<'t, &'static str, &'static [u8]>,
    condemned: redb::Table<'t, &'static str, u64>,
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("index records are plain structs with string keys")
}

fn words(bytes: &[u8]) -> Vec<Crc32c> {
    bytes.as_chunks().0.iter().map(|word| Crc32c(u32::from_le_bytes(*word))).collect()
}

fn index_error(path: &Path) -> impl Fn(redb::Error) -> StoreError {
    let path = path.to_owned();
    move |source| match source {
        redb::Error::Io(error)
            if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) =>
        {
            let directory = path.parent().unwrap_or(&path).to_owned();
            let limit = format!("the file system refused to let the index grow: {error}");
            StoreError::Full { directory, needed: INDEX_GROWTH, available: 0, limit }
        }
        source => StoreError::Index { path: path.clone(), source: Box::new(source) },
    }
}

/// Whether the file itself is bad, rather than the disk it is on or another process holding it.
fn is_damage(error: &redb::Error) -> bool {
    match error {
        redb::Error::Io(error) => matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof),
        redb::Error::DatabaseAlreadyOpen | redb::Error::PreviousIo => false,
        // Nothing but damage makes our own tables unreadable: a flipped bit can show as another type, or as no table.
        _ => true,
    }
}
