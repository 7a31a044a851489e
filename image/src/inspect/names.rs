//! The files of an image, what each of them is, and whether they agree.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use weightd_store::{
    BlobManifest, Paths, SnapshotManifest, format_line, parse_blob_manifest, parse_snapshot_manifest,
};
use weightd_types::{BlobKey, ByteRange, RESERVED_NAME, SnapshotKey};

use super::{Fault, ListedSnapshot, Listing, Verified, scan::ChunkSums};
use crate::{
    arrival::to_usize,
    ext4::{Ext4Error, FileSystem, Inode, Kind},
    provenance,
};

/// Most that is taken into memory of manifests and headers together: those of a thousand models have a tenth of it.
const MAX_SMALL_BYTES: u64 = 512 << 20;
/// Faults that are told of: one is enough to build an image again.
const MAX_FAULTS: usize = 1000;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// `format`.
    Format,
    /// The provenance, which nobody checks against anything.
    Provenance,
    /// A snapshot's manifest.
    Snapshot,
    /// A blob.
    Blob(BlobKey),
    /// A blob's manifest.
    BlobManifest(BlobKey),
    /// A blob's header file.
    Header(BlobKey),
}

/// A file of an image, under its first name.
pub(super) struct NamedFile {
    pub(super) path: PathBuf,
    pub(super) inode: Inode,
    pub(super) bytes: u64,
    pub(super) role: Role,
    /// Of small files.
    content: Vec<u8>,
    /// Of blobs.
    sums: ChunkSums,
}

/// The files of an image.
pub(super) struct Names {
    pub(super) files: Vec<NamedFile>,
    /// All names of regular files.
    inodes: HashMap<PathBuf, (Inode, u64)>,
    disk_bytes: u64,
    label: String,
    snapshots: BTreeMap<SnapshotKey, SnapshotManifest>,
    faults: Vec<Fault>,
    checked_bytes: u64,
    /// What manifests and headers take.
    small_bytes: u64,
}

impl Names {
    pub(super) fn read(file_system: &FileSystem, disk_bytes: u64) -> Result<Self, Ext4Error> {
        let mut names = Self {
            files: Vec::new(),
            inodes: HashMap::new(),
            disk_bytes,
            label: file_system.label().to_owned(),
            snapshots: BTreeMap::new(),
            faults: Vec::new(),
            checked_bytes: 0,
            small_bytes: 0,
        };
        for entry in file_system.entries()? {
            match entry.kind {
                Kind::File => {}
                Kind::Directory => continue,
                Kind::Symlink | Kind::Other => {
                    names.tell(&entry.path, "neither a file nor a directory: weightd makes none such");
                    continue;
                }
            }
            names.inodes.insert(entry.path.clone(), (entry.inode, entry.bytes));
            match role(&entry.path) {
                Some(role) => names.files.push(NamedFile {
                    path: entry.path,
                    inode: entry.inode,
                    bytes: entry.bytes,
                    role,
                    content: Vec::new(),
                    sums: ChunkSums::default(),
                }),
                None if is_in_snapshot(&entry.path) => {}
                None => names.tell(&entry.path, "no file of an image: weightd makes none such"),
            }
        }
        if !names.files.iter().any(|file| file.role == Role::Format) {
            names.tell(Path::new("format"), "it is missing");
        }
        Ok(names)
    }

    /// Takes the next bytes of a file.
    pub(super) fn take(&mut self, file: usize, logical: u64, bytes: &[u8]) {
        let found = &mut self.files[file];
        let follows = match found.role {
            Role::Blob(_) => found.sums.take(logical, bytes),
            _ if found.content.len() as u64 != logical => false,
            _ => {
                // What is cut short is told as damaged.
                let room = to_usize(MAX_SMALL_BYTES - self.small_bytes).min(bytes.len());
                found.content.extend_from_slice(&bytes[..room]);
                self.small_bytes += room as u64;
                room == bytes.len()
            }
        };
        if !follows {
            self.fault(file, None, "its parts do not lie in their order on the disk");
        }
    }

    pub(super) fn fault(&mut self, file: usize, range: Option<ByteRange>, why: impl Into<String>) {
        let path = self.files[file].path.clone();
        let fault = Fault { path, range, why: why.into() };
        if self.faults.len() < MAX_FAULTS && self.faults.last() != Some(&fault) {
            self.faults.push(fault);
        }
    }

    fn tell(&mut self, path: &Path, why: &str) {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(Fault { path: path.to_owned(), range: None, why: why.to_owned() });
        }
    }

    /// Compares everything that was taken.
    pub(super) fn conclude(&mut self, everything: bool) {
        for at in 0..self.files.len() {
            match self.files[at].role {
                Role::Snapshot => self.read_snapshot(at),
                Role::Format if everything && self.files[at].content != format_line().as_bytes() => {
                    self.fault(at, None, "not the format of this weightd");
                }
                _ => {}
            }
        }
        if everything {
            let by_path: HashMap<PathBuf, usize> =
                self.files.iter().enumerate().map(|(at, file)| (file.path.clone(), at)).collect();
            for at in 0..self.files.len() {
                match self.files[at].role {
                    Role::Blob(key) => self.check_blob(at, &key, &by_path),
                    Role::BlobManifest(key) => self.check_owner(at, &Paths::new("".into()).blob(&key)),
                    Role::Header(key) => self.check_owner(at, &Paths::new("".into()).blob(&key)),
                    Role::Format | Role::Provenance | Role::Snapshot => {}
                }
            }
            for manifest in self.snapshots.values().cloned().collect::<Vec<_>>() {
                self.check_links(&manifest);
            }
        }
    }

    fn read_snapshot(&mut self, at: usize) {
        match parse_snapshot_manifest(&self.files[at].content) {
            Ok(manifest)
                if Paths::new("".into()).snapshot_manifest(&manifest.key()) == self.files[at].path =>
            {
                self.snapshots.insert(manifest.key(), manifest);
            }
            Ok(_) => self.fault(at, None, "it speaks of another snapshot"),
            Err(error) => self.fault(at, None, error.to_string()),
        }
    }

    fn check_owner(&mut self, at: usize, blob: &Path) {
        if !self.inodes.contains_key(blob) {
            self.fault(at, None, "the blob it belongs to is missing");
        }
    }

    fn check_blob(&mut self, at: usize, key: &BlobKey, by_path: &HashMap<PathBuf, usize>) {
        let paths = Paths::new("".into());
        let content = |path: PathBuf| by_path.get(&path).map(|&at| self.files[at].content.clone());
        let Some(text) = content(paths.blob_manifest(key)) else {
            return self.fault(at, None, "its manifest is missing");
        };
        let manifest = match parse_blob_manifest(&text) {
            Ok(manifest) if manifest.key == *key => manifest,
            Ok(_) => return self.fault(at, None, "its manifest speaks of another blob"),
            Err(error) => return self.fault(at, None, error.to_string()),
        };
        let header: Bytes = content(paths.blob_header(key)).unwrap_or_default().into();
        if let Err(error) = manifest.placement(&header) {
            return self.fault(at, None, error.to_string());
        }
        self.checked_bytes += self.files[at].sums.bytes();
        self.compare(at, &manifest);
    }

    fn compare(&mut self, at: usize, manifest: &BlobManifest) {
        let file = &self.files[at];
        if file.bytes != manifest.blob_bytes || file.sums.bytes() != manifest.blob_bytes {
            let why = format!("it has {} bytes instead of {}", file.sums.bytes(), manifest.blob_bytes);
            return self.fault(at, None, why);
        }
        let sums = file.sums.sums().iter().zip(&manifest.chunk_crc32c).enumerate();
        let bad: Vec<usize> = sums.filter(|(_, (found, noted))| found != noted).map(|(at, _)| at).collect();
        for chunk in bad {
            let chunk = u32::try_from(chunk).unwrap_or(u32::MAX);
            let range = ByteRange::of_chunk(chunk, manifest.blob_bytes);
            self.fault(at, Some(range), "its bytes are not those that were recorded");
        }
    }

    /// Whether the files of a snapshot's directory are its blobs.
    fn check_links(&mut self, manifest: &SnapshotManifest) {
        let paths = Paths::new("".into());
        let directory = paths.snapshot(&manifest.key());
        for entry in &manifest.objects {
            let (name, blob) = (directory.join(&entry.object.path), paths.blob(&entry.blob));
            match (self.inodes.get(&name), self.inodes.get(&blob)) {
                (Some((file, _)), Some((blob, _))) if file == blob => {}
                (_, None) => self.tell(&blob, "the blob is missing"),
                _ => self.tell(&name, "it is not the blob that it should be"),
            }
        }
        if !self.inodes.contains_key(&directory.join(RESERVED_NAME)) {
            self.tell(&directory.join(RESERVED_NAME), "it is missing");
        }
    }

    pub(super) fn listing(&self) -> Listing {
        let snapshots = self.snapshots.values().map(|manifest| ListedSnapshot {
            key: manifest.key(),
            source: manifest.source.clone(),
            files: manifest
                .objects
                .iter()
                .map(|entry| (entry.object.path.to_string(), entry.object.size))
                .collect(),
        });
        Listing { disk_bytes: self.disk_bytes, label: self.label.clone(), snapshots: snapshots.collect() }
    }

    pub(super) fn verified(self) -> Verified {
        let blobs = self.files.iter().filter(|file| matches!(file.role, Role::Blob(_))).count();
        Verified { listing: self.listing(), checked_bytes: self.checked_bytes, blobs, faults: self.faults }
    }
}

/// What a file is, by its name.
fn role(path: &Path) -> Option<Role> {
    let text = path.to_str()?;
    if text == "format" {
        return Some(Role::Format);
    }
    if text == provenance::NAME {
        return Some(Role::Provenance);
    }
    if let Some(name) = text.strip_prefix("snapshots/") {
        let key = name.strip_suffix(".json")?;
        return key.parse::<SnapshotKey>().ok().map(|_| Role::Snapshot);
    }
    let (directory, name) = text.strip_prefix("blobs/")?.split_once('/')?;
    if !name.starts_with(directory) {
        return None;
    }
    let key = |name: &str| name.parse::<BlobKey>().ok();
    if let Some(name) = name.strip_suffix(".json") {
        return key(name).map(Role::BlobManifest);
    }
    if let Some(name) = name.strip_suffix(".header") {
        return key(name).map(Role::Header);
    }
    key(name).map(Role::Blob)
}

fn is_in_snapshot(path: &Path) -> bool {
    let mut parts = path.components().map(|part| part.as_os_str().to_str());
    parts.next() == Some(Some("snapshots"))
        && parts.next().flatten().is_some_and(|name| name.parse::<SnapshotKey>().is_ok())
        && parts.next().is_some()
}
