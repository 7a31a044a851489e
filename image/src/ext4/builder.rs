//! A file system under construction.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    ops::Range,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::PathBuf,
};

use rustix::{
    fs::{MemfdFlags, SeekFrom},
    io::Errno,
};

use super::{
    BLOCK_BYTES, Inode, LOST_AND_FOUND, LOST_AND_FOUND_INODE, ROOT_INODE,
    directory::{Blocks, EntryKind, check_name},
    error::Ext4Error,
    format::Format,
    sys::{Handle, RawInode},
    tree::{Tree, node_count},
};

const SECTOR_BYTES: u64 = 512;
const FILE_MODE: u16 = 0o100_000;
const DIRECTORY_MODE: u16 = 0o040_000;
const PERMISSIONS: u16 = 0o7777;
/// Names that an inode can have. A directory with more directories in it says 1 (`dir_nlink`).
const MAX_LINKS: u16 = 65_000;
/// What errors call the file system as a whole.
const WHOLE: &str = "the ext4 file system";

/// A file system under construction, whose metadata live in a sparse file in memory that is as long as the disk.
///
/// What is made depends on the calls and their order only, not on the day or the machine. After an error the file system is of
/// no more use: drop it.
#[derive(Debug)]
pub(crate) struct Builder {
    handle: Handle,
    memory: OwnedFd,
    time: u32,
    next_inode: u32,
    /// Blocks of the reserve that are free.
    free: Range<u64>,
    reserved_blocks: u64,
    /// Blocks that are free for contents.
    data: Range<u64>,
    directories: HashMap<u32, Directory>,
    /// Inodes of directories in the order in which they came, and so are written.
    order: Vec<u32>,
    /// Files, with how many names each has.
    files: HashMap<u32, u16>,
}

/// A directory, which is written when all its entries are known: then it lies in one piece.
#[derive(Debug)]
struct Directory {
    path: String,
    mode: u16,
    subdirectories: u64,
    blocks: Blocks,
    names: HashSet<Box<str>>,
}

/// The metadata of a finished file system.
#[derive(Debug)]
pub(crate) struct Metadata {
    /// A sparse file in memory, as long as the disk, with nothing but metadata in it.
    pub(crate) file: File,
    /// The byte ranges of it that hold data, in order. All other bytes before `data_start` must read as zeros on the disk:
    /// inode tables and the like that are not used yet.
    pub(crate) ranges: Vec<Range<u64>>,
    /// First byte of the disk that is free for contents.
    pub(crate) data_start: u64,
    /// End of what is free for contents.
    #[cfg(test)]
    pub(crate) data_end: u64,
}

impl Builder {
    /// An empty file system: a root directory that everyone may read, with `lost+found` in it.
    ///
    /// # Errors
    /// [`Ext4Error::Format`] when there can be no such file system, [`Ext4Error::Failed`] when memory is short.
    pub(crate) fn create(format: &Format) -> Result<Self, Ext4Error> {
        let shape = format.shape()?;
        let memory = memory_file(format.disk_bytes).map_err(Ext4Error::system("find memory for", WHOLE))?;
        // The library opens files by path only.
        let path = PathBuf::from(format!("/proc/self/fd/{}", memory.as_fd().as_raw_fd()));
        let handle = Handle::create(&path, &shape).map_err(Ext4Error::library("begin", WHOLE))?;
        let reserve_start = handle.tables_end();
        let data_start = reserve_start.saturating_add(format.reserved_blocks);
        let data = data_start..handle.blocks();
        if data.is_empty() {
            let needed = data_start.saturating_mul(BLOCK_BYTES);
            let disk_bytes = format.disk_bytes;
            return Err(Ext4Error::Format(format!(
                "a disk of {disk_bytes} bytes, when its metadata take {needed}"
            )));
        }
        let mut builder = Self {
            handle,
            memory,
            time: format.time,
            next_inode: LOST_AND_FOUND_INODE,
            free: reserve_start..data_start,
            reserved_blocks: format.reserved_blocks,
            data,
            directories: HashMap::new(),
            order: Vec::new(),
            files: HashMap::new(),
        };
        builder.begin_directory(ROOT_INODE, ROOT_INODE, String::new(), 0o755);
        builder.directory(builder.root(), LOST_AND_FOUND, 0o700)?;
        Ok(builder)
    }

    /// The root directory.
    pub(crate) fn root(&self) -> Inode {
        Inode::ROOT
    }

    /// First byte that is free for contents: all metadata lie before it. A multiple of 4096.
    pub(crate) fn data_start(&self) -> u64 {
        self.data.start * BLOCK_BYTES
    }

    /// End of the bytes that are free for contents. A multiple of 4096; less than the disk's length where [`Format`] says so.
    pub(crate) fn data_end(&self) -> u64 {
        self.data.end * BLOCK_BYTES
    }

    /// A new directory, with these permissions (`0o755`).
    ///
    /// # Errors
    /// [`Ext4Error::Refused`] when the name is impossible or taken, or there is no inode left.
    pub(crate) fn directory(&mut self, parent: Inode, name: &str, mode: u16) -> Result<Inode, Ext4Error> {
        let path = self.check_new(parent, name)?;
        let inode = self.claim_inode(&path, true)?;
        self.begin_directory(inode, parent.0, path, mode);
        self.add(parent, name, inode, EntryKind::Directory);
        Ok(Inode(inode))
    }

    /// A new regular file of `bytes`, with these permissions (`0o644`), whose contents lie at byte `at` of the disk in one
    /// piece. The caller writes them there, and zeros behind them up to a multiple of 4096. `at` is such a multiple too, and
    /// ignored when the file is empty.
    ///
    /// # Errors
    /// [`Ext4Error::Refused`] when the name is impossible or taken, the place is not free for contents, the file has more than
    /// 16 TiB or there is no inode left; [`Ext4Error::ReserveFull`]; [`Ext4Error::Failed`] when memory is short.
    pub(crate) fn file(
        &mut self,
        parent: Inode,
        name: &str,
        mode: u16,
        bytes: u64,
        at: u64,
    ) -> Result<Inode, Ext4Error> {
        let path = self.check_new(parent, name)?;
        let blocks = bytes.div_ceil(BLOCK_BYTES);
        let first = at / BLOCK_BYTES;
        if blocks > 0 {
            self.claim_contents(&path, at, blocks)?;
        }
        let nodes = node_count(blocks);
        let node = self.claim_reserved(&path, nodes)?;
        let tree = Tree::of_piece(first, blocks, node)
            .ok_or_else(|| refused(&path, "it is longer than a file can be, 16 TiB"))?;
        let inode = self.claim_inode(&path, false)?;
        for (block, mut bytes) in tree.nodes {
            let written = self.handle.write_extent_block(inode, block, &mut bytes);
            written.map_err(Ext4Error::library("write the extents of", &path))?;
        }
        let mode = FILE_MODE | mode & PERMISSIONS;
        self.write_inode(&path, inode, (mode, 1), bytes, blocks + nodes, tree.root)?;
        self.files.insert(inode, 1);
        self.add(parent, name, inode, EntryKind::File);
        Ok(Inode(inode))
    }

    /// A further name of a file.
    ///
    /// # Errors
    /// [`Ext4Error::Refused`] when the name is impossible or taken, when `file` is none, or when it has 65,000 names.
    pub(crate) fn link(&mut self, parent: Inode, name: &str, file: Inode) -> Result<(), Ext4Error> {
        let path = self.check_new(parent, name)?;
        let links =
            self.files.get_mut(&file.0).ok_or_else(|| refused(&path, "only files have further names"))?;
        if *links >= MAX_LINKS {
            return Err(refused(&path, "the file has as many names as it can have"));
        }
        *links += 1;
        let written = self.handle.set_links(file.0, *links);
        written.map_err(Ext4Error::library("count the names of", &path))?;
        self.add(parent, name, file.0, EntryKind::File);
        Ok(())
    }

    /// Makes it whole.
    ///
    /// # Errors
    /// [`Ext4Error::ReserveFull`] when the directories do not fit into the reserve; [`Ext4Error::Failed`] when memory is short.
    pub(crate) fn finish(mut self) -> Result<Metadata, Ext4Error> {
        for inode in std::mem::take(&mut self.order) {
            if let Some(directory) = self.directories.remove(&inode) {
                self.write_directory(inode, directory)?;
            }
        }
        self.handle.flush().map_err(Ext4Error::library("write", WHOLE))?;
        let data_start = self.data_start();
        #[cfg(test)]
        let data_end = self.data_end();
        let file = File::from(self.memory);
        let ranges = data_ranges(&file).map_err(Ext4Error::system("look through", WHOLE))?;
        Ok(Metadata {
            file,
            ranges,
            data_start,
            #[cfg(test)]
            data_end,
        })
    }

    /// The path of something new, when it may be named so.
    fn check_new(&self, parent: Inode, name: &str) -> Result<String, Ext4Error> {
        let Some(directory) = self.directories.get(&parent.0) else {
            return Err(refused(name, "what it should go into is no directory of this file system"));
        };
        let path = format!("{}/{name}", directory.path);
        check_name(name.as_bytes()).map_err(|reason| refused(&path, reason))?;
        if directory.names.contains(name) {
            return Err(refused(&path, "there is one already"));
        }
        Ok(path)
    }

    fn begin_directory(&mut self, inode: u32, parent: u32, path: String, mode: u16) {
        let mode = DIRECTORY_MODE | mode & PERMISSIONS;
        let (blocks, names) = (Blocks::new(inode, parent), HashSet::new());
        self.directories.insert(inode, Directory { path, mode, subdirectories: 0, blocks, names });
        self.order.push(inode);
    }

    fn add(&mut self, parent: Inode, name: &str, inode: u32, kind: EntryKind) {
        let directory = self.directories.get_mut(&parent.0).expect("check_new found it");
        directory.names.insert(name.into());
        directory.subdirectories += u64::from(kind == EntryKind::Directory);
        directory.blocks.push(name, inode, kind);
    }

    fn claim_inode(&mut self, path: &str, is_directory: bool) -> Result<u32, Ext4Error> {
        let inode = self.next_inode;
        if inode > self.handle.inodes() {
            return Err(refused(path, "there are no more inodes than the format asked for"));
        }
        self.handle.claim_inode(inode, is_directory).map_err(Ext4Error::library("number", path))?;
        self.next_inode += 1;
        Ok(inode)
    }

    fn claim_contents(&mut self, path: &str, at: u64, blocks: u64) -> Result<(), Ext4Error> {
        let first = at / BLOCK_BYTES;
        let end = first.saturating_add(blocks);
        if !at.is_multiple_of(BLOCK_BYTES) || first < self.data.start || end > self.data.end {
            let (start, end) = (self.data_start(), self.data_end());
            let reason =
                format!("contents lie at multiples of {BLOCK_BYTES} from {start} to {end}, not at {at}");
            return Err(Ext4Error::Refused { object: path.to_owned(), reason });
        }
        self.handle.claim_blocks(first, blocks).map_err(|code| match code.is_in_use() {
            true => refused(path, "another file has contents at the same place"),
            false => Ext4Error::library("place", path)(code),
        })
    }

    /// Takes blocks from the reserve, in one piece.
    fn claim_reserved(&mut self, path: &str, blocks: u64) -> Result<u64, Ext4Error> {
        let first = self.free.start;
        if blocks > self.free.end - first {
            return Err(Ext4Error::ReserveFull {
                object: path.to_owned(),
                reserved_blocks: self.reserved_blocks,
            });
        }
        self.handle.claim_blocks(first, blocks).map_err(Ext4Error::library("find room for", path))?;
        self.free.start += blocks;
        Ok(first)
    }

    fn write_inode(
        &mut self,
        path: &str,
        inode: u32,
        (mode, links): (u16, u16),
        bytes: u64,
        blocks: u64,
        root: [u8; super::sys::ROOT_BYTES],
    ) -> Result<(), Ext4Error> {
        let raw = RawInode { mode, links, flags: 0, bytes, root };
        let sectors = blocks * (BLOCK_BYTES / SECTOR_BYTES);
        let written = self.handle.write_inode(inode, &raw, sectors, self.time);
        written.map_err(Ext4Error::library("write the inode of", path))
    }

    fn write_directory(&mut self, inode: u32, directory: Directory) -> Result<(), Ext4Error> {
        let path = format!("{}/", directory.path);
        let contents = directory.blocks.finish();
        let blocks = contents.len() as u64;
        let first = self.claim_reserved(&path, blocks)?;
        let tree = Tree::of_piece(first, blocks, 0).filter(|tree| tree.nodes.is_empty());
        let tree = tree.ok_or_else(|| refused(&path, "the directory is longer than 512 MiB"))?;
        for (mut bytes, block) in contents.into_iter().zip(first..) {
            let written = self.handle.write_directory_block(inode, block, &mut bytes);
            written.map_err(Ext4Error::library("write the directory", &path))?;
        }
        // Its name, its dot, and the two dots of each directory in it.
        let links = u16::try_from(directory.subdirectories + 2).ok().filter(|links| *links < MAX_LINKS);
        let facts = (directory.mode, links.unwrap_or(1));
        self.write_inode(&path, inode, facts, blocks * BLOCK_BYTES, blocks, tree.root)
    }
}

fn refused(path: &str, reason: &str) -> Ext4Error {
    Ext4Error::Refused { object: path.to_owned(), reason: reason.to_owned() }
}

fn memory_file(bytes: u64) -> Result<OwnedFd, Errno> {
    let memory = rustix::fs::memfd_create("weightd-ext4", MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&memory, bytes)?;
    Ok(memory)
}

/// The ranges of a file that are not holes.
fn data_ranges(file: &File) -> Result<Vec<Range<u64>>, Errno> {
    let (mut ranges, mut at) = (Vec::new(), 0);
    loop {
        match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => {
                at = rustix::fs::seek(file, SeekFrom::Hole(start))?;
                ranges.push(start..at);
            }
            // Nothing but a hole until the end.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error),
        }
    }
    rustix::fs::seek(file, SeekFrom::Start(0))?;
    Ok(ranges)
}
