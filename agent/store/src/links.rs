//! A snapshot's directory: hard links to its blobs, and copies where a file system allows no more links.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use weightd_types::RESERVED_NAME;

use crate::{
    SnapshotEntry, SnapshotManifest, Store, StoreError, io::temporary_name, partial::to_usize,
    snapshots::set_mode, store::lock,
};

/// What is read at a time of files that are compared.
const COMPARED_BYTES: usize = 64 << 10;
/// Snapshots with more directories sync the file system once instead of each.
const FEW_DIRECTORIES: usize = 8;

impl Store {
    /// Objects of a published snapshot whose files are neither their blobs nor have the same bytes: a copy rots by
    /// itself, and anyone may have put another file there. With any, the snapshot is not complete until it is published
    /// again.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub async fn strange_files(
        &self,
        manifest: Arc<SnapshotManifest>,
    ) -> Result<Vec<SnapshotEntry>, StoreError> {
        self.blocking(move |store| {
            let _changing = lock(&store.inner.changing);
            let directory = store.paths().snapshot(&manifest.key());
            let is_strange = |entry: &&SnapshotEntry| {
                let (blob, file) = (store.paths().blob(&entry.blob), directory.join(&entry.object.path));
                !is_same_file(&blob, &file) && store.has_blob(&entry.blob) && !has_same_bytes(&blob, &file)
            };
            let strange: Vec<_> = manifest.objects.iter().filter(is_strange).cloned().collect();
            if !strange.is_empty() {
                store.mark_incomplete(&manifest.key())?;
            }
            Ok(strange)
        })
        .await
    }

    /// Whether a snapshot's directory is there and holds its blobs: one that lost a blob and got it back in place may
    /// be mounted, and is left as it is.
    pub(crate) fn is_linked(&self, manifest: &SnapshotManifest) -> Result<bool, StoreError> {
        let directory = self.paths().snapshot(&manifest.key());
        if !directory.join(RESERVED_NAME).exists() {
            return Ok(false);
        }
        for entry in &manifest.objects {
            let (blob, file) = (self.paths().blob(&entry.blob), directory.join(&entry.object.path));
            if !is_same_file(&blob, &file) && !self.is_rightly_copied(&blob, &file)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether a file is the copy that [`Store::link_or_copy`] would make again: the blob's bytes, and no link to be had.
    fn is_rightly_copied(&self, blob: &Path, file: &Path) -> Result<bool, StoreError> {
        let probe = temporary_name(blob).map_err(StoreError::io("name", blob))?;
        match self.inner.engine.link(blob, &probe) {
            Err(error) if error.kind() == io::ErrorKind::TooManyLinks => Ok(has_same_bytes(blob, file)),
            other => {
                self.inner.engine.remove(&probe).map_err(StoreError::io("remove", &probe))?;
                other.map(|()| false).map_err(|error| self.disk_error("link", &probe, 0, error))
            }
        }
    }

    /// Links a snapshot's blobs into a directory under a temporary name, and renames it.
    pub(crate) fn link_snapshot(&self, manifest: &SnapshotManifest) -> Result<(), StoreError> {
        let (engine, paths, key) = (&self.inner.engine, self.paths(), manifest.key());
        let building = paths.temporary().join(key.to_string());
        self.remove_directory(&building)?;
        let mut directories = BTreeSet::from([building.clone()]);
        engine.create_directories(&building).map_err(StoreError::io("create", &building))?;
        for entry in &manifest.objects {
            let file = building.join(&entry.object.path);
            for above in file.ancestors().skip(1).take_while(|above| *above != building) {
                directories.insert(above.to_owned());
            }
            if !entry.object.path.directory().is_empty()
                && let Some(parent) = file.parent()
            {
                engine.create_directories(parent).map_err(StoreError::io("create", parent))?;
            }
            self.link_or_copy(&paths.blob(&entry.blob), &file)?;
        }
        let placeholder = building.join(RESERVED_NAME);
        self.write_whole(&placeholder, b"", false)?;
        set_mode(&placeholder, 0o444)?;
        self.sync_directories(&directories)?;
        let directory = paths.snapshot(&key);
        self.remove_directory(&directory)?;
        engine.rename(&building, &directory).map_err(StoreError::io("rename", &building))?;
        // Sealed under the final name: moving a directory needs leave to write to it, for anyone but root.
        for sealed in directories.iter().rev() {
            let below = sealed.strip_prefix(&building).unwrap_or(Path::new(""));
            set_mode(&directory.join(below), 0o555)?;
        }
        Ok(())
    }

    fn sync_directories(&self, directories: &BTreeSet<PathBuf>) -> Result<(), StoreError> {
        let engine = &self.inner.engine;
        if directories.len() > FEW_DIRECTORIES {
            let root = self.paths().root();
            return engine.sync_all(root).map_err(StoreError::io("sync", root));
        }
        let sync =
            |directory: &PathBuf| engine.sync_directory(directory).map_err(StoreError::io("sync", directory));
        directories.iter().try_for_each(sync)
    }

    /// File systems bound how many names a file has (ext4: 65,000); beyond that a snapshot gets a copy of its own.
    fn link_or_copy(&self, blob: &Path, file: &Path) -> Result<(), StoreError> {
        match self.inner.engine.link(blob, file) {
            Err(error) if error.kind() == io::ErrorKind::TooManyLinks => {
                std::fs::copy(blob, file).map_err(|error| self.disk_error("copy", file, 0, error))?;
                let copy = File::open(file).map_err(StoreError::io("open", file))?;
                copy.sync_all().map_err(StoreError::io("sync", file))?;
                set_mode(file, 0o444)
            }
            other => other.map_err(|error| self.disk_error("link", file, 0, error)),
        }
    }
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let inode = |path: &Path| std::fs::symlink_metadata(path).map(|found| (found.dev(), found.ino())).ok();
    inode(one).is_some_and(|one| inode(other) == Some(one))
}

/// A file that cannot be read has none.
fn has_same_bytes(one: &Path, other: &Path) -> bool {
    let compare = || -> io::Result<bool> {
        let (mut one, mut other) = (File::open(one)?, File::open(other)?);
        let mut left = one.metadata()?.len();
        if left != other.metadata()?.len() {
            return Ok(false);
        }
        let (mut mine, mut theirs) = (vec![0; COMPARED_BYTES], vec![0; COMPARED_BYTES]);
        while left > 0 {
            let len = to_usize(left).min(COMPARED_BYTES);
            one.read_exact(&mut mine[..len])?;
            other.read_exact(&mut theirs[..len])?;
            if mine[..len] != theirs[..len] {
                return Ok(false);
            }
            left -= len as u64;
        }
        Ok(true)
    };
    compare().unwrap_or(false)
}
