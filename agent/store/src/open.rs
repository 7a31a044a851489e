//! Opening a store: whose it is, whether this code can read it, and what a crash left behind.

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    path::Path,
    sync::{Arc, Mutex, mpsc},
};

use weightd_types::SnapshotKey;

use crate::{
    Config, Metrics, Store, StoreError,
    catalog::{Catalog, Entry, Place},
    commit::{Committer, QUEUE},
    gate::Gate,
    index::Index,
    io::{BufferPool, IoEngine, TEMPORARY_SUFFIX, is_leftover, open_engine},
    manifest::parse_snapshot_manifest,
    paths::{FORMAT_VERSION, FORMAT_WORD, Paths, format_line},
    store::{Inner, MICROS, lock},
    tiers::Tiers,
    usage::{Usage, entries, is_file, warn_of_stranger},
};

/// Blobs that may wait for a slow listener.
const TOLD: usize = 1024;

impl Store {
    /// Opens a store, making it when the directory is empty or missing. Blocks; belongs on a blocking thread.
    ///
    /// # Errors
    /// [`StoreError`] says whether it is locked, read-only, of a newer format, or not a store at all.
    pub fn open(config: Config) -> Result<Self, StoreError> {
        let pool = BufferPool::new(buffers(&config))
            .map_err(StoreError::io("map buffers for", &config.directory))?;
        let choice = config.engine;
        let directory = config.directory.clone();
        Self::open_with(config, pool.clone(), move || open_engine(&directory, &pool, choice))
    }

    /// Opens a store on an engine of the caller's: for tests that lose power.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_on(config: Config, pool: BufferPool, engine: Arc<dyn IoEngine>) -> Result<Self, StoreError> {
        Self::open_with(config, pool, || Ok(engine))
    }

    fn open_with(
        config: Config,
        pool: BufferPool,
        engine: impl FnOnce() -> io::Result<Arc<dyn IoEngine>>,
    ) -> Result<Self, StoreError> {
        let paths = Paths::new(config.directory.clone());
        make_root(&paths)?;
        // Looked at before, so that nothing is written to a stranger's directory; and again, because whoever had the
        // lock may just have made it a store.
        is_new(&paths)?;
        let lock_file = take_lock(&paths)?;
        let is_new = is_new(&paths)?;
        let engine = engine().map_err(StoreError::io("use", paths.root()))?;
        if is_new {
            initialise(engine.as_ref(), &paths)?;
        }
        let index = Arc::new(Index::open(&engine, paths.index())?);
        let (orders, received) = mpsc::sync_channel(QUEUE);
        let inner = Arc::new(Inner {
            config,
            paths,
            engine,
            pool,
            index,
            catalog: Mutex::default(),
            usage: Mutex::new(Usage::default()),
            active: Mutex::default(),
            cached: Mutex::default(),
            landings: Mutex::default(),
            begun: tokio::sync::Notify::new(),
            discarded: tokio::sync::broadcast::Sender::new(TOLD),
            replaced: tokio::sync::broadcast::Sender::new(TOLD),
            changing: Mutex::default(),
            beginning: Mutex::default(),
            recording: Mutex::default(),
            gate: Gate::new(),
            metrics: Metrics::default(),
            committer: Mutex::new(None),
            orders,
            lock: Mutex::new(Some(lock_file)),
            tiers: Tiers::default(),
        });
        let store = Self { inner };
        *store.catalog() = store.recover()?;
        let committer = Committer::start(Arc::downgrade(&store.inner), received);
        *lock(&store.inner.committer) =
            Some(committer.map_err(StoreError::io("start a thread for", store.paths().root()))?);
        Ok(store)
    }

    /// Reads the manifests, and clears away what a crash left half-made.
    fn recover(&self) -> Result<Catalog, StoreError> {
        let (pins, recency) = (self.inner.index.pins()?, self.inner.index.recency()?);
        let wanted = self.wanted_snapshots()?;
        let mut catalog = Catalog::default();
        let mut directories = Vec::new();
        // Sorted, so that `<key>.json` comes before `<key>.loading.json`.
        let mut found = entries(&self.paths().snapshots())?;
        found.sort();
        for path in found {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let (stem, complete) = match (name.strip_suffix(".loading.json"), name.strip_suffix(".json")) {
                (Some(stem), _) => (stem, false),
                (None, Some(stem)) => (stem, true),
                (None, None) => {
                    directories.push(path);
                    continue;
                }
            };
            if stem.parse::<SnapshotKey>().is_err() || !is_file(&path) {
                warn_of_stranger(&path);
                continue;
            }
            let Some(entry) = self.read_manifest(&path, stem, complete)? else { continue };
            let key = entry.manifest.key();
            if catalog.get(&key).is_none() {
                let name = key.to_string();
                let last_used = recency.get(&name).copied().unwrap_or(entry.last_used);
                let (pinned, wanted) = (pins.contains_key(&name), wanted.contains(&key));
                catalog.insert(Entry { pinned, wanted, last_used, ..entry });
            }
        }
        for path in directories {
            self.recover_directory(&path, &catalog)?;
        }
        self.sweep_root()?;
        self.forget_stale_partials()?;
        Ok(catalog)
    }

    /// Removes a snapshot's directory that no manifest speaks of. That of a snapshot which lost a blob may be mounted;
    /// publishing uses it again.
    fn recover_directory(&self, path: &Path, catalog: &Catalog) -> Result<(), StoreError> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        match name.parse::<SnapshotKey>() {
            Ok(key) if catalog.get(&key).is_some() => Ok(()),
            Ok(_) if path.is_dir() => self.remove_directory(path),
            Err(_) if is_leftover(path) => {
                self.inner.engine.remove(path).map_err(StoreError::io("remove", path))
            }
            _ => {
                warn_of_stranger(path);
                Ok(())
            }
        }
    }

    /// Those in `blobs/` go when it is walked, which a command that fetches nothing is spared.
    fn sweep_root(&self) -> Result<(), StoreError> {
        for path in entries(self.paths().root())?.iter().filter(|path| is_leftover(path) && is_file(path)) {
            self.inner.engine.remove(path).map_err(StoreError::io("remove", path))?;
        }
        Ok(())
    }

    /// Records of partial blobs that are complete by now, or whose file a crash took: forgetting them is not durable by
    /// itself.
    fn forget_stale_partials(&self) -> Result<(), StoreError> {
        let mut stale = self.inner.index.partials()?;
        stale
            .retain(|(key, _)| self.paths().blob_manifest(key).exists() || !is_file(&self.paths().blob(key)));
        let keys: Vec<_> = stale.into_iter().map(|(key, _)| key).collect();
        if keys.is_empty() { Ok(()) } else { self.inner.index.forget_partials(&keys, true) }
    }

    /// A manifest that cannot be believed is removed: the blobs it spoke of have manifests of their own, so the next
    /// prefetch links them again without fetching.
    fn read_manifest(&self, path: &Path, stem: &str, complete: bool) -> Result<Option<Entry>, StoreError> {
        let bytes = std::fs::read(path).map_err(StoreError::io("read", path))?;
        let problem = match parse_snapshot_manifest(&bytes) {
            Ok(manifest) if manifest.key().to_string() != stem => "it speaks of another snapshot".to_owned(),
            Ok(manifest) if complete && !self.paths().snapshot(&manifest.key()).is_dir() => {
                "its directory is missing".to_owned()
            }
            Ok(manifest) => {
                let last_used = manifest.resolved_at.saturating_mul(MICROS);
                let manifest = Arc::new(manifest);
                return Ok(Some(Entry {
                    manifest,
                    complete,
                    place: Place::Own,
                    pinned: false,
                    wanted: false,
                    last_used,
                    uses: 0,
                }));
            }
            Err(error) => error.to_string(),
        };
        tracing::warn!(manifest = %path.display(), problem, "removing the manifest of a snapshot; prefetch it again");
        self.inner.engine.remove(path).map_err(StoreError::io("remove", path))?;
        Ok(None)
    }
}

fn buffers(config: &Config) -> usize {
    let chunks = config.buffer_bytes / weightd_types::CHUNK_BYTES;
    usize::try_from(chunks).unwrap_or(usize::MAX).max(2)
}

/// Makes the directory, if it is missing.
fn make_root(paths: &Paths) -> Result<(), StoreError> {
    let root = paths.root();
    let missing: Vec<_> = root.ancestors().take_while(|above| !above.exists()).collect();
    if let Some(file) = root.ancestors().find(|above| above.exists()).filter(|above| !above.is_dir()) {
        return Err(StoreError::NotAStore { directory: file.to_owned(), why: "a file, not a directory" });
    }
    if let Err(error) = std::fs::create_dir_all(root) {
        return Err(match error.kind() {
            io::ErrorKind::ReadOnlyFilesystem => StoreError::ReadOnly { directory: root.to_owned() },
            _ => StoreError::io("create", root)(error),
        });
    }
    for parent in missing.iter().filter_map(|made| made.parent()) {
        // A power cut must not take the whole store's name; a parent that cannot be opened is not ours to sync.
        let _ = File::open(parent).and_then(|parent| parent.sync_all());
    }
    Ok(())
}

/// Whether the directory has yet to become a store. One with other things in it must not.
fn is_new(paths: &Paths) -> Result<bool, StoreError> {
    // Before the format is read: whoever makes a store here right now writes that first.
    let strangers = has_strangers(paths)?;
    match read_format(paths)? {
        Some(()) => Ok(false),
        None if !strangers => Ok(true),
        None => {
            let directory = paths.root().to_owned();
            Err(StoreError::NotAStore { directory, why: "not a weightd store and not empty" })
        }
    }
}

/// Checks the format of a directory; `None` when it says none.
pub(crate) fn read_format(paths: &Paths) -> Result<Option<()>, StoreError> {
    let directory = paths.root().to_owned();
    let text = match std::fs::read_to_string(paths.format()) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io("read", paths.format())(error)),
    };
    match text.trim().strip_prefix(FORMAT_WORD).and_then(|version| version.trim().parse::<u32>().ok()) {
        Some(found) if found > FORMAT_VERSION => Err(StoreError::NewerFormat { directory, found }),
        Some(_) => Ok(Some(())),
        None => Err(StoreError::NotAStore { directory, why: "its file `format` is not a weightd store's" }),
    }
}

/// Whether there is more than a crash leaves that came before the format was written.
fn has_strangers(paths: &Paths) -> Result<bool, StoreError> {
    // A fresh file system has lost+found.
    let files = [paths.lock(), paths.root().join("lost+found")];
    let directories = [paths.blobs(), paths.snapshots(), paths.temporary()];
    for path in entries(paths.root())? {
        let is_ours = files.contains(&path)
            || is_temporary(&path)
            || (directories.contains(&path) && path.is_dir() && entries(&path)?.is_empty());
        if !is_ours {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether it may be a file under its temporary name, of any process.
fn is_temporary(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.starts_with('.') && name.ends_with(TEMPORARY_SUFFIX)
}

fn initialise(engine: &dyn IoEngine, paths: &Paths) -> Result<(), StoreError> {
    for directory in [paths.blobs(), paths.snapshots(), paths.temporary()] {
        engine.create_directories(&directory).map_err(StoreError::io("create", directory))?;
    }
    let line = format_line();
    engine
        .write_whole(&paths.format(), line.as_bytes(), true)
        .map_err(StoreError::io("write", paths.format()))?;
    engine.sync_directory(paths.root()).map_err(StoreError::io("sync", paths.root()))
}

/// Two agents on one store would overwrite each other's index.
fn take_lock(paths: &Paths) -> Result<File, StoreError> {
    let (path, directory) = (paths.lock(), paths.root().to_owned());
    let opened = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = opened.map_err(|error| match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => StoreError::ReadOnly { directory: directory.clone() },
        _ => StoreError::io("open", &path)(error),
    })?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let named = file.read_to_string(&mut pid).is_ok() && !pid.trim().is_empty();
            let pid = if named { pid.trim().to_owned() } else { "unknown".to_owned() };
            return Err(StoreError::Locked { directory, pid });
        }
        Err(std::fs::TryLockError::Error(error)) => return Err(StoreError::io("lock", &path)(error)),
    }
    let written =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(StoreError::io("write", &path))?;
    Ok(file)
}
