//! Files and directories of a snapshot, made from its manifest alone, so that every agent makes the same.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fuser::{FileAttr, FileType};
use weightd_store::SnapshotManifest;
use weightd_types::RESERVED_NAME;

use super::nodes::{Family, NODES_LIMIT, Node};
use crate::ExposeError;

/// A snapshot as a tree of nodes.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) family: Family,
    pub(crate) manifest: Arc<SnapshotManifest>,
    /// Lengths of the files, in the manifest's order.
    lengths: Vec<u64>,
    /// The snapshot's own directory, and those below it.
    directories: Vec<Directory>,
}

#[derive(Debug, Default)]
struct Directory {
    parent: u32,
    /// By name.
    children: BTreeMap<String, u32>,
}

/// What a position in the tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A file: its position in the manifest.
    File(usize),
    Directory,
    /// Empty, and there to be mounted over.
    Placeholder,
}

/// A name in a directory.
pub(crate) struct Child<'t> {
    pub(crate) name: &'t str,
    pub(crate) index: u32,
}

impl Tree {
    /// A tree of files of these lengths, in the manifest's order.
    pub(crate) fn new(manifest: Arc<SnapshotManifest>, lengths: Vec<u64>) -> Result<Self, ExposeError> {
        let files = manifest.objects.len();
        if lengths.len() != files {
            let why = format!("lengths of {} files are known, and there are {files}", lengths.len());
            return Err(ExposeError::NoFuse { why });
        }
        let mut directories = BTreeMap::from([(String::new(), Directory::default())]);
        for entry in &manifest.objects {
            let mut above = entry.object.path.directory();
            while !above.is_empty() {
                directories.entry(above.to_owned()).or_default();
                above = above.rsplit_once('/').map_or("", |(above, _)| above);
            }
        }
        if files + directories.len() >= NODES_LIMIT {
            return Err(ExposeError::NoFuse {
                why: format!("{files} files are more than a volume can show"),
            });
        }
        let position = |at: usize| u32::try_from(at).expect("below the limit, which fits");
        let index_of: BTreeMap<String, u32> = directories
            .keys()
            .enumerate()
            .map(|(at, path)| (path.clone(), if at == 0 { 0 } else { position(files + at) }))
            .collect();
        let mut name = |path: &str, index: u32| {
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
            let directory = directories.get_mut(parent).expect("every directory above was made");
            directory.children.insert(name.to_owned(), index);
        };
        for (at, entry) in manifest.objects.iter().enumerate() {
            name(entry.object.path.as_str(), position(at + 1));
        }
        for (path, index) in index_of.iter().filter(|(path, _)| !path.is_empty()) {
            name(path, *index);
        }
        name(RESERVED_NAME, position(files + index_of.len()));
        for (path, directory) in &mut directories {
            directory.parent = index_of[path.rsplit_once('/').map_or("", |(above, _)| above)];
        }
        let family = Family::of(&manifest.key());
        let directories = directories.into_values().collect();
        Ok(Self { family, manifest, lengths, directories })
    }

    /// Length of a file, by its position in the manifest.
    pub(crate) fn length(&self, position: usize) -> u64 {
        self.lengths[position]
    }

    /// What a position is; `None` beyond the last.
    pub(crate) fn kind(&self, index: u32) -> Option<Kind> {
        let (index, files) = (index as usize, self.manifest.objects.len());
        match index {
            0 => Some(Kind::Directory),
            _ if index <= files => Some(Kind::File(index - 1)),
            _ if index < files + self.directories.len() => Some(Kind::Directory),
            _ if index == files + self.directories.len() => Some(Kind::Placeholder),
            _ => None,
        }
    }

    fn directory(&self, index: u32) -> Option<&Directory> {
        let at = if index == 0 { 0 } else { (index as usize).checked_sub(self.manifest.objects.len())? };
        // The position of the first file is none of a directory's.
        self.directories.get(at).filter(|_| index == 0 || at > 0)
    }

    /// A directory's child by name.
    pub(crate) fn child(&self, directory: u32, name: &str) -> Option<u32> {
        self.directory(directory)?.children.get(name).copied()
    }

    /// A directory's children, in order of name.
    pub(crate) fn children(&self, directory: u32) -> Option<impl Iterator<Item = Child<'_>>> {
        let children = &self.directory(directory)?.children;
        Some(children.iter().map(|(name, index)| Child { name, index: *index }))
    }

    /// Every name, with the directory that it is in.
    pub(crate) fn names(&self) -> impl Iterator<Item = (u32, Child<'_>)> {
        let files = self.manifest.objects.len();
        let below = (1..self.directories.len()).filter_map(move |at| u32::try_from(files + at).ok());
        let directories = std::iter::once(0).chain(below);
        directories
            .flat_map(|index| self.children(index).into_iter().flatten().map(move |child| (index, child)))
    }

    /// The directory above a directory.
    pub(crate) fn parent(&self, directory: u32) -> Option<u32> {
        Some(self.directory(directory)?.parent)
    }

    /// Attributes of a node; `None` when there is none of this number.
    pub(crate) fn attributes(&self, node: Node) -> Option<FileAttr> {
        let kind = self.kind(node.index)?;
        let size = if let Kind::File(at) = kind { self.length(at) } else { 0 };
        let links = || {
            let children = self.directory(node.index).map_or(0, |directory| directory.children.len());
            u32::try_from(children).unwrap_or(u32::MAX)
        };
        let (kind, perm, nlink) = match kind {
            Kind::Directory => (FileType::Directory, 0o555, links().saturating_add(2)),
            Kind::File(_) | Kind::Placeholder => (FileType::RegularFile, 0o444, 1),
        };
        Some(attributes(node.number(), kind, perm, nlink, size, self.time()))
    }

    fn time(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.manifest.resolved_at)
    }
}

/// Attributes as everything here has them: owned by root, read-only, never changed.
pub(crate) fn attributes(
    ino: fuser::INodeNo,
    kind: FileType,
    perm: u16,
    nlink: u32,
    size: u64,
    time: SystemTime,
) -> FileAttr {
    FileAttr {
        ino,
        size,
        blocks: size.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind,
        perm,
        nlink,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

#[cfg(test)]
mod tests {
    use weightd_types::{Checksums, Layout, Object, ObjectPath, Snapshot, Version};

    use super::*;

    fn tree(paths: &[&str]) -> Tree {
        let object = |path: &&str| Object {
            path: ObjectPath::new(*path).unwrap(),
            size: path.len() as u64,
            version: Version::Generation(1),
            checksums: Checksums::default(),
        };
        let source = "gs://bucket/model".parse().unwrap();
        let snapshot = Snapshot::new(source, paths.iter().map(object).collect()).unwrap();
        let lengths = paths.iter().map(|path| path.len() as u64).collect();
        Tree::new(Arc::new(SnapshotManifest::new(&snapshot, Layout::Original, 0)), lengths).unwrap()
    }

    /// Every path below a directory, files with their lengths.
    fn walk(tree: &Tree, directory: u32, above: &str, found: &mut Vec<String>) {
        for child in tree.children(directory).unwrap() {
            let path = format!("{above}{}", child.name);
            assert_eq!(tree.child(directory, child.name), Some(child.index));
            let node = Node { family: tree.family, index: child.index, through: false };
            let attributes = tree.attributes(node).unwrap();
            assert_eq!(attributes.ino, node.number());
            if tree.kind(child.index) == Some(Kind::Directory) {
                assert_eq!(tree.parent(child.index), Some(directory));
                walk(tree, child.index, &format!("{path}/"), found);
            } else {
                found.push(format!("{path} {}", attributes.size));
            }
        }
    }

    #[test]
    fn a_tree_has_every_file_of_its_manifest_and_no_other() {
        let paths = ["a.json", "a/b/c/deep.bin", "a/b/x", "z/last"];
        let tree = tree(&paths);
        let mut found = Vec::new();
        walk(&tree, 0, "", &mut found);
        found.sort();
        let mut expected: Vec<_> = paths.iter().map(|path| format!("{path} {}", path.len())).collect();
        expected.push(format!("{RESERVED_NAME} 0"));
        expected.sort();
        assert_eq!(found, expected);
        let names: Vec<_> = tree.names().map(|(index, child)| (index, child.name)).collect();
        assert_eq!(names.len(), paths.len() + 4 + 1, "each once, the placeholder too: {names:?}");
        assert!(names.iter().all(|(index, name)| tree.child(*index, name).is_some()), "{names:?}");
        assert_eq!(tree.child(0, "b"), None);
        assert_eq!(tree.kind(4), Some(Kind::File(3)));
        assert_eq!(tree.child(4, "last"), None, "a file has no children");
        assert_eq!(tree.kind(10), None);
    }

    #[test]
    fn the_same_manifest_gives_the_same_numbers() {
        let paths = ["a/1", "b/2", "c"];
        let (one, other) = (tree(&paths), tree(&paths));
        for name in ["a", "b", "c"] {
            assert_eq!(one.child(0, name), other.child(0, name));
        }
        assert_eq!(one.family, other.family);
        assert_ne!(one.family, tree(&["a/1"]).family);
    }
}
