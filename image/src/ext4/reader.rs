//! A file system that is read, from whomever it comes: nothing it says of itself is believed.

use std::{
    collections::HashSet,
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use super::{
    Inode, LOST_AND_FOUND, LOST_AND_FOUND_INODE, ROOT_INODE,
    directory::{self, RawEntry},
    error::Ext4Error,
    pieces::{Extent, Place, pieces},
    superblock::{self, Superblock},
    sys::{Handle, RawInode},
};

const KIND_MASK: u16 = 0o170_000;
const DIRECTORY_MODE: u16 = 0o040_000;
const FILE_MODE: u16 = 0o100_000;
const SYMLINK_MODE: u16 = 0o120_000;
/// More than an image of weights has, and few enough to be held in memory.
const MAX_ENTRIES: usize = 1 << 20;
const MAX_PATHS_BYTES: usize = 256 << 20;
/// The kernel's `PATH_MAX`; it also bounds how deep directories lie in each other.
const MAX_PATH_BYTES: usize = 4096;
const MAX_DIRECTORIES_BYTES: u64 = 1 << 30;

/// A file system that is read, never written.
#[derive(Debug)]
pub(crate) struct FileSystem {
    handle: Handle,
    superblock: Superblock,
    path: String,
}

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, a pipe or a socket.
    Other,
}

/// A name in a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Path relative to the root, without a slash in front.
    pub(crate) path: PathBuf,
    /// The inode that is named so.
    pub(crate) inode: Inode,
    /// Its kind and permissions, as `stat` gives them.
    pub(crate) mode: u16,
    /// What it is.
    pub(crate) kind: Kind,
    /// Its length in bytes.
    pub(crate) bytes: u64,
    /// How many names it has, by its own account.
    pub(crate) links: u16,
}

impl FileSystem {
    /// Opens the file system in a file or block device, which must not change meanwhile.
    ///
    /// # Errors
    /// [`Ext4Error::Damaged`] when it is none, or its superblock or group descriptors are not sound;
    /// [`Ext4Error::Unsupported`] when it is of another kind or its journal is not replayed; [`Ext4Error::Failed`] when it
    /// cannot be read.
    pub(crate) fn open(path: &Path) -> Result<Self, Ext4Error> {
        let superblock = superblock::read(path)?;
        let object = path.display().to_string();
        let handle = Handle::open(path).map_err(Ext4Error::library("open", &object))?;
        if handle.block_bytes() as u64 != superblock.block_bytes || handle.blocks() != superblock.blocks {
            return Err(Ext4Error::Damaged { object, reason: "it changed while it was opened" });
        }
        handle.check_groups().map_err(|reason| Ext4Error::Damaged { object: object.clone(), reason })?;
        Ok(Self { handle, superblock, path: object })
    }

    /// Checks what no file is found by: the bitmaps, which a kernel looks at when it writes, and the inodes that are the file
    /// system's own.
    ///
    /// # Errors
    /// [`Ext4Error::Damaged`], or [`Ext4Error::Failed`] when a checksum is wrong or something cannot be read.
    pub(crate) fn check_tables(&self) -> Result<(), Ext4Error> {
        let object = self.path.clone();
        let checked = self.handle.check_tables(LOST_AND_FOUND_INODE);
        checked
            .map_err(Ext4Error::library("check the tables of", &object))?
            .map_err(|reason| Ext4Error::Damaged { object, reason })
    }

    /// Name of the file system, at most 16 bytes.
    pub(crate) fn label(&self) -> &str {
        &self.superblock.label
    }

    /// Identity of the file system.
    #[cfg(test)]
    pub(crate) fn uuid(&self) -> [u8; 16] {
        self.superblock.uuid
    }

    /// Length of the file system in bytes; the disk may be longer.
    pub(crate) fn disk_bytes(&self) -> u64 {
        self.superblock.blocks * self.superblock.block_bytes
    }

    /// Length of a block in bytes.
    pub(crate) fn block_bytes(&self) -> u64 {
        self.superblock.block_bytes
    }

    /// Everything below the root in the order in which directories name it, each directory followed by what is in it.
    /// `lost+found` is checked and left out, and what is in it.
    ///
    /// # Errors
    /// [`Ext4Error::Damaged`], also for a directory with two names and for more than 2²⁰ entries; [`Ext4Error::Failed`] when
    /// a checksum is wrong or something cannot be read; [`Ext4Error::Unsupported`].
    pub(crate) fn entries(&self) -> Result<Vec<Entry>, Ext4Error> {
        let mut walk =
            Walk { fs: self, entries: Vec::new(), seen: HashSet::new(), paths: 0, directories: 0, listed: 0 };
        let mut open = vec![(PathBuf::new(), walk.list(ROOT_INODE, &self.path)?.into_iter())];
        while let Some((parent, rest)) = open.last_mut() {
            let Some(raw) = rest.next() else {
                open.pop();
                continue;
            };
            if parent.as_os_str().is_empty() && raw.name == LOST_AND_FOUND.as_bytes() {
                walk.list(raw.inode, LOST_AND_FOUND)?;
                continue;
            }
            let path = parent.join(OsStr::from_bytes(&raw.name));
            if walk.visit(raw.inode, &path)? {
                let below = walk.list(raw.inode, &path.display().to_string())?;
                open.push((path, below.into_iter()));
            }
        }
        Ok(walk.entries)
    }

    /// Where the contents of a file lie: pieces in order, from its first byte to its last, as long as can be.
    ///
    /// # Errors
    /// [`Ext4Error::Damaged`], also for more than 2²⁰ pieces; [`Ext4Error::Failed`] when a checksum is wrong or something
    /// cannot be read; [`Ext4Error::Unsupported`] when it has no extents.
    pub(crate) fn extents(&self, inode: Inode) -> Result<Vec<Extent>, Ext4Error> {
        let object = name_of(inode.0);
        pieces(&self.handle, inode.0, &self.inode(inode.0, &object)?, &object)
    }

    /// A small file, whole.
    ///
    /// # Errors
    /// [`Ext4Error::TooLong`] when it has more than `limit` bytes, and as [`FileSystem::extents`].
    #[cfg(test)]
    pub(crate) fn read(&self, inode: Inode, limit: u64) -> Result<Vec<u8>, Ext4Error> {
        let object = name_of(inode.0);
        let raw = self.inode(inode.0, &object)?;
        let too_long = || Ext4Error::TooLong { object: object.clone(), bytes: raw.bytes, limit_bytes: limit };
        let bytes = usize::try_from(raw.bytes).ok().filter(|_| raw.bytes <= limit).ok_or_else(too_long)?;
        let mut contents = Vec::with_capacity(bytes);
        let mut block = vec![0; self.handle.block_bytes()];
        for piece in pieces(&self.handle, inode.0, &raw, &object)? {
            let mut left = usize::try_from(piece.bytes).map_err(|_| too_long())?;
            let Place::Disk(at) = piece.place else {
                contents.resize(contents.len() + left, 0);
                continue;
            };
            for number in at / self.block_bytes().. {
                let read = self.handle.read_block(number, &mut block);
                read.map_err(Ext4Error::library("read", &object))?;
                contents.extend_from_slice(&block[..left.min(block.len())]);
                left = left.saturating_sub(block.len());
                if left == 0 {
                    break;
                }
            }
        }
        Ok(contents)
    }

    fn inode(&self, number: u32, object: &str) -> Result<RawInode, Ext4Error> {
        if number == 0 || number > self.handle.inodes() {
            return Err(Ext4Error::Damaged {
                object: object.to_owned(),
                reason: "it has an impossible inode",
            });
        }
        self.handle.read_inode(number).map_err(Ext4Error::library("read the inode of", object))
    }
}

/// What errors call an inode whose path is not known.
fn name_of(inode: u32) -> String {
    format!("inode {inode}")
}

/// A walk through all directories, with what bounds it.
struct Walk<'a> {
    fs: &'a FileSystem,
    entries: Vec<Entry>,
    /// Directories that were listed.
    seen: HashSet<u32>,
    /// Bytes of all paths.
    paths: usize,
    /// Bytes of all directories.
    directories: u64,
    /// Names in all directories, of which some are still to be visited.
    listed: usize,
}

impl Walk<'_> {
    /// Adds an entry; true for a directory.
    fn visit(&mut self, number: u32, path: &Path) -> Result<bool, Ext4Error> {
        let object = path.display().to_string();
        let damaged = |reason| Err(Ext4Error::Damaged { object: object.clone(), reason });
        self.paths += path.as_os_str().len();
        if path.as_os_str().len() > MAX_PATH_BYTES || self.paths > MAX_PATHS_BYTES {
            return damaged("its path is too long, or all paths are together");
        }
        let RawInode { mode, links, bytes, .. } = self.fs.inode(number, &object)?;
        if links == 0 {
            return damaged("it names an inode that was deleted");
        }
        let kind = match mode & KIND_MASK {
            FILE_MODE => Kind::File,
            DIRECTORY_MODE => Kind::Directory,
            SYMLINK_MODE => Kind::Symlink,
            _ => Kind::Other,
        };
        let inode = Inode(number);
        self.entries.push(Entry { path: path.to_owned(), inode, mode, kind, bytes, links });
        Ok(kind == Kind::Directory)
    }

    fn list(&mut self, number: u32, object: &str) -> Result<Vec<RawEntry>, Ext4Error> {
        let damaged = |reason| Err(Ext4Error::Damaged { object: object.to_owned(), reason });
        let inode = self.fs.inode(number, object)?;
        if inode.mode & KIND_MASK != DIRECTORY_MODE || !self.seen.insert(number) {
            return damaged("it is no directory, or one that has another name already");
        }
        self.directories = self.directories.saturating_add(inode.bytes);
        if !inode.bytes.is_multiple_of(self.fs.block_bytes()) || self.directories > MAX_DIRECTORIES_BYTES {
            return damaged("the directory has an impossible length, or all have together");
        }
        let mut entries = Vec::new();
        let mut block = vec![0; self.fs.handle.block_bytes()];
        for piece in pieces(&self.fs.handle, number, &inode, object)? {
            let Place::Disk(at) = piece.place else {
                return damaged("the directory has a hole");
            };
            let first = at / self.fs.block_bytes();
            for number_of_block in first..first + piece.bytes / self.fs.block_bytes() {
                let read = self.fs.handle.read_directory_block(number, number_of_block, &mut block);
                read.map_err(Ext4Error::library("read the directory", object))?;
                directory::parse(&block, object, &mut entries)?;
                if self.listed + entries.len() > MAX_ENTRIES {
                    return damaged("the directory has too many entries, or all have together");
                }
            }
        }
        self.listed += entries.len();
        Ok(entries)
    }
}
