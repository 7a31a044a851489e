//! The names in an image: those of a store (`docs/STORE.md`), less what only changes.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;
use weightd_store::{Paths, SnapshotManifest, format_line};
use weightd_types::{BlobKey, RESERVED_NAME};

use crate::{
    contents::{Blob, Contents},
    disk::Content,
    finished::manifest_bytes,
    provenance,
};

/// Of files that nobody changes.
const FILE_MODE: u16 = 0o444;
/// Of directories in which nobody makes files.
const DIRECTORY_MODE: u16 = 0o555;

/// One name.
pub(crate) struct Name {
    /// Relative to the root, without a slash in front.
    pub(crate) path: String,
    pub(crate) mode: u16,
    pub(crate) kind: Kind,
}

/// What has a name.
pub(crate) enum Kind {
    Directory,
    File {
        /// Length in bytes.
        bytes: u64,
        content: Content,
    },
    /// Another name of the file that was named so many names after the first.
    Link(usize),
}

/// The names in an image; directories before what is in them.
pub(crate) struct Tree {
    pub(crate) names: Vec<Name>,
    directories: BTreeSet<String>,
}

impl Tree {
    /// The store that holds an image's contents.
    pub(crate) fn of(contents: &Contents) -> Self {
        let mut tree = Self { names: Vec::new(), directories: BTreeSet::new() };
        let paths = Paths::new("".into());
        let text = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
        tree.known(text(paths.format()), format_line().into());
        tree.known(provenance::NAME.to_owned(), provenance::describe(contents).into());
        let blobs: HashMap<BlobKey, usize> = contents
            .blobs
            .iter()
            .enumerate()
            .map(|(at, blob)| (blob.wanted.key, tree.blob(&paths, at, blob)))
            .collect();
        for manifest in &contents.snapshots {
            tree.known(text(paths.snapshot_manifest(&manifest.key())), manifest.encode().into());
            tree.snapshot(&text(paths.snapshot(&manifest.key())), manifest, &blobs);
        }
        tree
    }

    /// Names of directories and files, without further links.
    pub(crate) fn inodes(&self) -> u64 {
        self.names.iter().filter(|name| !matches!(name.kind, Kind::Link(_))).count() as u64
    }

    /// The files: their numbers among the names, their lengths in bytes, and what they hold.
    pub(crate) fn files(&self) -> impl Iterator<Item = (usize, u64, &Content)> {
        self.names.iter().enumerate().filter_map(|(number, name)| match &name.kind {
            Kind::File { bytes, content } => Some((number, *bytes, content)),
            Kind::Directory | Kind::Link(_) => None,
        })
    }

    fn blob(&mut self, paths: &Paths, at: usize, blob: &Blob) -> usize {
        let (key, text) = (&blob.wanted.key, |path: std::path::PathBuf| path.to_string_lossy().into_owned());
        if !blob.wanted.header.is_empty() {
            self.known(text(paths.blob_header(key)), blob.wanted.header.clone());
        }
        let bytes = manifest_bytes(blob);
        self.file(text(paths.blob_manifest(key)), bytes, Content::Manifest(at));
        self.file(text(paths.blob(key)), blob.bytes(), Content::Blob(at))
    }

    fn snapshot(&mut self, directory: &str, manifest: &SnapshotManifest, blobs: &HashMap<BlobKey, usize>) {
        self.known(format!("{directory}/{RESERVED_NAME}"), Bytes::new());
        for entry in &manifest.objects {
            let path = format!("{directory}/{}", entry.object.path);
            self.add(path, FILE_MODE, Kind::Link(blobs[&entry.blob]));
        }
    }

    fn known(&mut self, path: String, bytes: Bytes) {
        self.file(path, bytes.len() as u64, Content::Known(bytes));
    }

    fn file(&mut self, path: String, bytes: u64, content: Content) -> usize {
        self.add(path, FILE_MODE, Kind::File { bytes, content })
    }

    /// Adds a name, and the directories above it that are not there.
    fn add(&mut self, path: String, mode: u16, kind: Kind) -> usize {
        for (at, _) in path.match_indices('/') {
            if self.directories.insert(path[..at].to_owned()) {
                let path = path[..at].to_owned();
                self.names.push(Name { path, mode: DIRECTORY_MODE, kind: Kind::Directory });
            }
        }
        self.names.push(Name { path, mode, kind });
        self.names.len() - 1
    }
}
