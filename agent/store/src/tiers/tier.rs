//! One read-only tier: recognised by its format, known by its manifests.

use std::{
    collections::{BTreeMap, HashSet},
    fs::Metadata,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::fs::{AtFlags, CWD, StatVfsMountFlags, StatxFlags, statx};
use weightd_types::{BlobKey, Layout, RESERVED_NAME, SnapshotKey};

use crate::{
    SnapshotManifest, StoreError,
    manifest::parse_snapshot_manifest,
    open::read_format,
    paths::Paths,
    store::lock,
    usage::{entries, is_directory, is_file},
};

/// A directory in the store format that this node only reads.
#[derive(Debug)]
pub(crate) struct Tier {
    paths: Paths,
    identity: Identity,
    snapshots: BTreeMap<SnapshotKey, Arc<SnapshotManifest>>,
    blobs: HashSet<BlobKey>,
    /// Whether it is mounted for writing, which nobody should need.
    is_writable: bool,
    /// Bytes a second, measured; 0 while that is not known.
    speed: AtomicU64,
    /// Blobs in which something was found to be wrong.
    condemned: Mutex<HashSet<BlobKey>>,
    /// Snapshots whose directories hold something else by now.
    strange: Mutex<HashSet<SnapshotKey>>,
}

/// What tells a tier from another that came to its place, or from itself with more in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Of the file `format`.
    device: u64,
    inode: u64,
    /// Of the file system: devices and inodes of two images that are attached one after the other are the same. 0 where there is
    /// none.
    file_system: u64,
    /// Of the mount, where the kernel says so: the same disk, mounted again, is looked at anew.
    mount: Option<u64>,
    /// Of the directory of snapshots, in nanoseconds: it changes when one comes or goes.
    changed: i128,
}

impl Identity {
    /// Of what is at a directory now; `None` when there is no tier.
    pub(crate) fn of(directory: &Path) -> Option<Self> {
        let paths = Paths::new(directory.to_owned());
        let format = plain(&paths.format()).filter(Metadata::is_file)?;
        let snapshots = plain(&paths.snapshots()).filter(Metadata::is_dir)?;
        let changed = i128::from(snapshots.mtime()) * 1_000_000_000 + i128::from(snapshots.mtime_nsec());
        let file_system = rustix::fs::statvfs(directory).ok()?.f_fsid;
        let about = statx(CWD, directory, AtFlags::empty(), StatxFlags::MNT_ID).ok();
        let mount = about.filter(|about| about.stx_mask & StatxFlags::MNT_ID.bits() != 0);
        let mount = mount.map(|about| about.stx_mnt_id);
        Some(Self { device: format.dev(), inode: format.ino(), file_system, mount, changed })
    }
}

/// What is there, without following a link.
fn plain(path: &Path) -> Option<Metadata> {
    std::fs::symlink_metadata(path).ok()
}

impl Tier {
    /// Takes a directory as a tier, from its manifests alone: no blob is read. Snapshots that cannot be believed are left out, with
    /// a warning.
    ///
    /// # Errors
    /// [`StoreError::NotAStore`], [`StoreError::NewerFormat`], [`StoreError::Io`].
    pub(crate) fn open(directory: &Path) -> Result<Self, StoreError> {
        let not_a_store = |why| StoreError::NotAStore { directory: directory.to_owned(), why };
        let paths = Paths::new(directory.to_owned());
        // Before the manifests: one that comes meanwhile is seen as a change.
        let identity = Identity::of(directory).ok_or_else(|| not_a_store("no store of weightd's"))?;
        read_format(&paths)?.ok_or_else(|| not_a_store("no store of weightd's"))?;
        let found = rustix::fs::statvfs(directory).map_err(io::Error::from);
        let is_writable =
            !found.map_err(StoreError::io("inspect", directory))?.f_flag.contains(StatVfsMountFlags::RDONLY);
        let mut snapshots = BTreeMap::new();
        for path in entries(&paths.snapshots())? {
            match snapshot(&paths, &path) {
                Ok(Some(manifest)) => drop(snapshots.insert(manifest.key(), Arc::new(manifest))),
                Ok(None) => {}
                Err(why) => {
                    tracing::warn!(manifest = %path.display(), why, "leaving out a snapshot of a read-only tier");
                }
            }
        }
        let blobs = snapshots.values().flat_map(|manifest| manifest.objects.iter().map(|entry| entry.blob));
        Ok(Self {
            blobs: blobs.collect(),
            paths,
            identity,
            snapshots,
            is_writable,
            speed: AtomicU64::new(0),
            condemned: Mutex::default(),
            strange: Mutex::default(),
        })
    }

    pub(crate) fn directory(&self) -> &Path {
        self.paths.root()
    }

    pub(crate) fn paths(&self) -> &Paths {
        &self.paths
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.is_writable
    }

    /// Its complete snapshots.
    pub(crate) fn snapshots(&self) -> &BTreeMap<SnapshotKey, Arc<SnapshotManifest>> {
        &self.snapshots
    }

    /// Blobs of its complete snapshots.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &BlobKey> {
        self.blobs.iter()
    }

    /// Whether it has a blob in which nothing was found to be wrong.
    pub(crate) fn has(&self, blob: &BlobKey) -> bool {
        self.blobs.contains(blob) && !lock(&self.condemned).contains(blob)
    }

    /// Whether it has a blob in which something is wrong.
    pub(crate) fn has_condemned(&self, blob: &BlobKey) -> bool {
        self.blobs.contains(blob) && lock(&self.condemned).contains(blob)
    }

    /// Whether it has all of a snapshot, under its name.
    pub(crate) fn has_snapshot(&self, key: &SnapshotKey) -> bool {
        let is_strange = lock(&self.strange).contains(key);
        self.snapshots
            .get(key)
            .filter(|_| !is_strange)
            .is_some_and(|manifest| manifest.objects.iter().all(|entry| self.has(&entry.blob)))
    }

    /// Says that something is wrong with a blob: from now on it is not here.
    pub(crate) fn condemn(&self, blob: BlobKey) {
        lock(&self.condemned).insert(blob);
    }

    /// Bytes a second, measured; 0 while that is not known.
    pub(crate) fn speed(&self) -> u64 {
        self.speed.load(Ordering::Relaxed)
    }

    pub(crate) fn set_speed(&self, bytes_per_second: u64) {
        self.speed.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Its longest blob, to measure by.
    pub(crate) fn longest(&self) -> Option<PathBuf> {
        let objects = self.snapshots.values().flat_map(|manifest| &manifest.objects);
        let longest = objects.filter(|entry| self.has(&entry.blob)).max_by_key(|entry| entry.object.size)?;
        Some(self.paths.blob(&longest.blob))
    }

    /// Whether the files of a snapshot are its blobs. Anyone may have put something else there where it is mounted for writing.
    /// A snapshot that holds something else is not shown from here any more, however good its blobs are.
    pub(crate) fn is_intact(&self, manifest: &SnapshotManifest) -> bool {
        let Err(why) = is_intact(&self.paths, manifest) else { return true };
        let (tier, snapshot) = (self.directory().display(), manifest.key());
        tracing::warn!(%tier, %snapshot, why, "not shown from this tier any more");
        lock(&self.strange).insert(snapshot);
        false
    }
}

/// A snapshot of a tier, by its manifest's path; `None` for what is no manifest of a complete one.
fn snapshot(paths: &Paths, path: &Path) -> Result<Option<SnapshotManifest>, String> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some(key) = name.strip_suffix(".json").and_then(|stem| stem.parse::<SnapshotKey>().ok()) else {
        return Ok(None);
    };
    if !is_file(path) {
        return Err("it is not a file".to_owned());
    }
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let manifest = parse_snapshot_manifest(&bytes).map_err(|error| error.to_string())?;
    if manifest.key() != key {
        return Err("it speaks of another snapshot".to_owned());
    }
    is_intact(paths, &manifest)?;
    Ok(Some(manifest))
}

/// Every file of a snapshot's directory is its blob, and no name leads elsewhere.
fn is_intact(paths: &Paths, manifest: &SnapshotManifest) -> Result<(), String> {
    let directory = paths.snapshot(&manifest.key());
    let mut above = HashSet::from([String::new()]);
    for entry in &manifest.objects {
        let path = entry.object.path.as_str();
        above.extend(path.match_indices('/').map(|(at, _)| path[..at].to_owned()));
    }
    for directory in above.iter().map(|below| directory.join(below)) {
        if !is_directory(&directory) {
            return Err(format!("{} is not a directory", directory.display()));
        }
    }
    if !is_file(&directory.join(RESERVED_NAME)) {
        return Err(format!("{} is missing", directory.join(RESERVED_NAME).display()));
    }
    for entry in &manifest.objects {
        let (blob, file) = (paths.blob(&entry.blob), directory.join(&entry.object.path));
        let has_manifest = is_file(&paths.blob_manifest(&entry.blob));
        let (Some(blob), Some(file), true) = (plain(&blob), plain(&file), has_manifest) else {
            return Err(format!("{} is missing", entry.object.path));
        };
        let is_same = (blob.dev(), blob.ino()) == (file.dev(), file.ino());
        let has_length = entry.blob.layout != Layout::Original || blob.len() == entry.object.size;
        if !blob.is_file() || !is_same || !has_length {
            return Err(format!("{} is not the blob that it should be", entry.object.path));
        }
    }
    Ok(())
}
