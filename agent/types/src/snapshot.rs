//! The immutable resolution of a source at one moment.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Digest, InvalidDigest, Layout, Object, ObjectPath, SourceUri, UnknownLayout, display_bytes};

/// File that every snapshot directory holds for a volume's hand-off socket to be mounted over; no object may be
/// called so.
pub const RESERVED_NAME: &str = ".weightd.sock";

/// Largest object: more than any origin stores, and few enough chunks for their places to be held in memory.
pub const MAX_OBJECT_BYTES: u64 = 64 << 40;

/// Largest snapshot, far enough below 2^64 that no sum of its lengths overflows.
pub const MAX_SNAPSHOT_BYTES: u64 = 1 << 60;

/// Digest of a snapshot's object list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SnapshotId(Digest);

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SnapshotId {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        text.parse().map(Self)
    }
}

/// One snapshot in one layout, which is what a store holds. Written `<id>.<layout>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotKey {
    /// Which objects.
    pub id: SnapshotId,
    /// Placed how.
    pub layout: Layout,
}

impl fmt::Display for SnapshotKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.id, self.layout)
    }
}

impl FromStr for SnapshotKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (id, layout) = text.split_once('.').ok_or_else(|| format!("{text:?} is not <id>.<layout>"))?;
        Ok(Self {
            id: id.parse().map_err(|error: InvalidDigest| error.to_string())?,
            layout: layout.parse().map_err(|error: UnknownLayout| error.to_string())?,
        })
    }
}

/// The objects of a source at one moment, sorted by path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    source: SourceUri,
    objects: Vec<Object>,
    id: SnapshotId,
}

/// Objects that cannot be one snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Nothing there, or nothing left of it.
    #[error("{source_uri} has no objects{}", if *.selected { " that the selection takes: loosen --include and --exclude" } else { ": check the bucket and the prefix" })]
    Empty {
        /// The source.
        source_uri: String,
        /// Whether objects were there before the selection.
        selected: bool,
    },
    /// One name twice.
    #[error("{source_uri} lists {path:?} twice")]
    Duplicate {
        /// The source.
        source_uri: String,
        /// The name.
        path: String,
    },
    /// `a` and `a/b` cannot both be files.
    #[error(
        "{source_uri} has an object {file:?} and an object {below:?}: a file cannot also be a directory; leave one out with --exclude"
    )]
    FileIsDirectory {
        /// The source.
        source_uri: String,
        /// The one that would have to be both.
        file: String,
        /// The one below it.
        below: String,
    },
    /// A length that no object has, or one that makes the snapshot too large.
    #[error(
        "{source_uri} has an object {path:?} of {}: weightd takes objects of up to {} and snapshots of up to {}; leave it out with --exclude",
        display_bytes(*.size), display_bytes(MAX_OBJECT_BYTES), display_bytes(MAX_SNAPSHOT_BYTES)
    )]
    TooLarge {
        /// The source.
        source_uri: String,
        /// The object.
        path: String,
        /// Its length.
        size: u64,
    },
    /// The placeholder's name.
    #[error(
        "{source_uri} has an object {path:?}: weightd keeps the name {RESERVED_NAME} for itself; leave it out with --exclude"
    )]
    Reserved {
        /// The source.
        source_uri: String,
        /// The object.
        path: String,
    },
}

impl Snapshot {
    /// Makes a snapshot of a selected listing.
    ///
    /// # Errors
    /// [`SnapshotError`] when there are no objects, their names cannot all be files of one directory, or they are
    /// too large.
    pub fn new(source: SourceUri, mut objects: Vec<Object>) -> Result<Self, SnapshotError> {
        let source_uri = || source.to_string();
        if objects.is_empty() {
            return Err(SnapshotError::Empty { source_uri: source_uri(), selected: false });
        }
        objects.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        let mut files: BTreeMap<&str, ()> = BTreeMap::new();
        for object in &objects {
            let path = object.path.as_str();
            if path == RESERVED_NAME {
                return Err(SnapshotError::Reserved { source_uri: source_uri(), path: path.to_owned() });
            }
            if files.insert(path, ()).is_some() {
                return Err(SnapshotError::Duplicate { source_uri: source_uri(), path: path.to_owned() });
            }
        }
        for object in &objects {
            let below = object.path.as_str();
            let directories = below.match_indices('/').map(|(at, _)| &below[..at]);
            if let Some(file) = directories.into_iter().find(|directory| files.contains_key(directory)) {
                let (file, below) = (file.to_owned(), below.to_owned());
                return Err(SnapshotError::FileIsDirectory { source_uri: source_uri(), file, below });
            }
        }
        if let Some(Object { path, size, .. }) = too_large(&objects) {
            let (path, size) = (path.as_str().to_owned(), *size);
            return Err(SnapshotError::TooLarge { source_uri: source_uri(), path, size });
        }
        let id = SnapshotId(digest(&source, &objects));
        Ok(Self { source, objects, id })
    }

    /// Its id: two snapshots with the same id have the same objects with the same bytes.
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// Where it comes from.
    pub fn source(&self) -> &SourceUri {
        &self.source
    }

    /// Its objects, sorted by path.
    pub fn objects(&self) -> &[Object] {
        &self.objects
    }

    /// The object of that name.
    pub fn object(&self, path: &ObjectPath) -> Option<&Object> {
        self.objects.binary_search_by(|object| object.path.cmp(path)).ok().map(|at| &self.objects[at])
    }

    /// Sum of the objects' lengths in bytes.
    pub fn size(&self) -> u64 {
        self.objects.iter().map(|object| object.size).sum()
    }
}

/// The first object that no snapshot can hold: it is too large, by itself or with those before it.
fn too_large(objects: &[Object]) -> Option<&Object> {
    let mut total = 0_u64;
    objects.iter().find(|object| {
        total = total.saturating_add(object.size);
        object.size > MAX_OBJECT_BYTES || total > MAX_SNAPSHOT_BYTES
    })
}

/// SHA-256 of a text with one line per object. The revision is not in it: two names of one commit are one
/// snapshot. Paths hold no control characters, so lines and tabs cannot be forged.
fn digest(source: &SourceUri, objects: &[Object]) -> Digest {
    let mut text = format!("weightd-snapshot-1\n{}\n", source.root());
    for object in objects {
        let Object { path, size, version, checksums } = object;
        text += &format!("{path}\t{size}\t{}\t{}\n", version.identity(), checksums.describe());
    }
    Digest::of(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Checksums, Version};

    fn object(path: &str, generation: i64) -> Object {
        Object {
            path: ObjectPath::new(path).unwrap(),
            size: 3,
            version: Version::Generation(generation),
            checksums: Checksums::default(),
        }
    }

    fn snapshot(uri: &str, objects: Vec<Object>) -> Result<Snapshot, SnapshotError> {
        Snapshot::new(uri.parse().unwrap(), objects)
    }

    #[test]
    fn the_id_tells_versions_apart_and_not_the_order_of_listing() {
        let id = |objects| snapshot("gs://b/m", objects).unwrap().id();
        assert_eq!(id(vec![object("a", 1), object("b", 1)]), id(vec![object("b", 1), object("a", 1)]));
        assert_ne!(id(vec![object("a", 1)]), id(vec![object("a", 2)]));
        assert_ne!(id(vec![object("a", 1)]), snapshot("gs://b/n", vec![object("a", 1)]).unwrap().id());
    }

    #[test]
    fn names_that_cannot_share_a_directory_are_refused() {
        let error = |objects| snapshot("gs://b/m", objects).unwrap_err().to_string();
        assert!(error(vec![]).contains("no objects"));
        assert!(error(vec![object("a", 1), object("a", 2)]).contains("twice"));
        assert!(
            error(vec![object("a", 1), object("a-b", 1), object("a/b", 1)]).contains("also be a directory")
        );
        assert!(error(vec![object(RESERVED_NAME, 1)]).contains("--exclude"));
    }

    #[test]
    fn lengths_that_no_sum_can_hold_are_refused_by_name() {
        let sized = |path: &str, size| Object { size, ..object(path, 1) };
        let error = snapshot("gs://b/m", vec![sized("a", 1 << 63), sized("b", 1 << 63)]).unwrap_err();
        assert!(error.to_string().contains("\"a\" of 8.00 EiB"), "{error}");
        let count = MAX_SNAPSHOT_BYTES / MAX_OBJECT_BYTES;
        let mut full: Vec<_> = (0..count).map(|at| sized(&format!("{at:05}"), MAX_OBJECT_BYTES)).collect();
        assert_eq!(snapshot("gs://b/m", full.clone()).unwrap().size(), MAX_SNAPSHOT_BYTES);
        full.push(sized("z", 1));
        let error = snapshot("gs://b/m", full).unwrap_err();
        assert!(error.to_string().contains("\"z\""), "{error}");
    }

    #[test]
    fn objects_are_found_by_name() {
        let snapshot = snapshot("gs://b/m", vec![object("b", 1), object("a", 2)]).unwrap();
        let found = snapshot.object(&ObjectPath::new("a").unwrap()).unwrap();
        assert_eq!(found.version, Version::Generation(2));
        assert_eq!(snapshot.size(), 6);
    }
}
