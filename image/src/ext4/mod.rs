//! An ext4 file system in a file, made and read without root, mount or loop device, through e2fsprogs' libext2fs.
//!
//! What is made here is only ever mounted read-only. All metadata lie in front, packed; behind [`Builder::data_start`] there
//! is nothing but contents, which the caller places and writes itself:
//!
//! ```text
//! superblock | group descriptors | block bitmaps | inode bitmaps | inode tables | reserve | contents ...
//! ```
//!
//! The reserve takes directories and the nodes of extent trees. Only what is used is ever written: of the inode tables the
//! inodes there are, and a block bitmap for each 128 MiB that have contents, so that metadata are about 1/32768 of those.
//!
//! Features, all of them known to every kernel since 4.0 (most since 2.6.28; sparse_super2 since 3.16, metadata_csum since
//! 3.6): extents, filetype, 64bit, flex_bg, sparse_super, sparse_super2 (with no backup: what is rebuilt by repeating needs
//! none, and contents stay in one piece), large_file, huge_file, dir_nlink, extra_isize, metadata_csum. 64bit is on at every
//! length, as `mke2fs` has it: one layout is tested rather than two, and bitmaps get checksums of 32 bits instead of 16. No
//! journal, no resize inode, no directory index, no blocks kept for root.

mod builder;
mod directory;
mod error;
mod format;
mod pieces;
mod reader;
mod superblock;
mod sys;
mod tree;

#[cfg(test)]
mod tests;

pub(crate) use builder::Builder;
pub(crate) use error::Ext4Error;
pub(crate) use format::{Format, disk_bytes, reserve};
pub(crate) use pieces::{Extent, Place};
pub(crate) use reader::{FileSystem, Kind};

/// Length of a block in bytes.
pub(crate) const BLOCK_BYTES: u64 = 4096;
/// The root directory's inode.
const ROOT_INODE: u32 = 2;
/// The inode of `lost+found`, the first one that is not the file system's own.
const LOST_AND_FOUND_INODE: u32 = 11;
const LOST_AND_FOUND: &str = "lost+found";

/// Number of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Inode(u32);

impl Inode {
    /// The root directory of any file system.
    pub(crate) const ROOT: Self = Self(ROOT_INODE);

    /// The number.
    #[cfg(test)]
    pub(crate) fn number(self) -> u32 {
        self.0
    }
}
