//! Blocks of directories, made and read.
//!
//! A block is filled with entries: inode, length of the entry, length of the name, kind, name. The library turns them from
//! and to the disk's byte order, so that here numbers are the machine's own. Its last 12 bytes are left for a checksum.

use std::fmt;

use super::{BLOCK_BYTES, error::Ext4Error};

/// Longest name in bytes.
pub(super) const MAX_NAME_BYTES: usize = 255;
const BLOCK: usize = 4096;
/// What a block has for entries; behind them lies the checksum, which looks like an entry too.
const ROOM_BYTES: usize = BLOCK - 12;
/// Entries that fit into a block in any case, in the first one besides `.` and `..`: 15 × 264 + 24 ≤ 4084.
pub(super) const MIN_ENTRIES_OF_BLOCK: u64 = 15;
const HEADER_BYTES: usize = 8;
const _: () = assert!(BLOCK as u64 == BLOCK_BYTES, "a directory's blocks are blocks");

/// What an entry says of its inode's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EntryKind {
    /// A regular file.
    File = 1,
    /// A directory.
    Directory = 2,
}

/// Blocks of a directory, under construction.
pub(super) struct Blocks {
    blocks: Vec<Vec<u8>>,
    /// Where in the last block its last entry begins.
    last: usize,
    /// Where in the last block that entry ends.
    end: usize,
}

impl fmt::Debug for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blocks").field("blocks", &self.blocks.len()).finish_non_exhaustive()
    }
}

impl Blocks {
    /// A directory with `.` and `..` only.
    pub(super) fn new(inode: u32, parent: u32) -> Self {
        let mut blocks = Self { blocks: Vec::new(), last: 0, end: ROOM_BYTES };
        blocks.push(".", inode, EntryKind::Directory);
        blocks.push("..", parent, EntryKind::Directory);
        blocks
    }

    /// Adds an entry behind the others.
    pub(super) fn push(&mut self, name: &str, inode: u32, kind: EntryKind) {
        let bytes = (HEADER_BYTES + name.len()).next_multiple_of(4);
        if self.end + bytes > ROOM_BYTES {
            // The last entry of a block reaches to where the checksum begins.
            self.set_length(ROOM_BYTES);
            self.blocks.push(vec![0; BLOCK]);
            self.end = 0;
        }
        (self.last, self.end) = (self.end, self.end + bytes);
        self.set_length(self.end);
        let name_bytes = u8::try_from(name.len()).expect("names are checked before they come here");
        let (start, block) = (self.last, self.blocks.last_mut().expect("there is a block by now"));
        block[start..start + 4].copy_from_slice(&inode.to_ne_bytes());
        block[start + 6] = name_bytes;
        block[start + 7] = kind as u8;
        block[start + HEADER_BYTES..start + HEADER_BYTES + name.len()].copy_from_slice(name.as_bytes());
    }

    /// Has the last entry end there.
    fn set_length(&mut self, end: usize) {
        if let Some(block) = self.blocks.last_mut() {
            let length = u16::try_from(end - self.last).expect("an entry is no longer than a block");
            block[self.last + 4..self.last + 6].copy_from_slice(&length.to_ne_bytes());
        }
    }

    /// The blocks, whole but for their checksums.
    pub(super) fn finish(mut self) -> Vec<Vec<u8>> {
        self.set_length(ROOM_BYTES);
        self.blocks
    }
}

/// Whether something can be named so.
///
/// # Errors
/// Why not.
pub(super) fn check_name(name: &[u8]) -> Result<(), &'static str> {
    match name {
        b"" => Err("its name is empty"),
        b"." | b".." => Err("its name is a dot or two"),
        name if name.len() > MAX_NAME_BYTES => Err("its name is longer than 255 bytes"),
        name if name.contains(&b'/') || name.contains(&0) => Err("its name has a slash or a zero byte in it"),
        _ => Ok(()),
    }
}

/// An entry as it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RawEntry {
    /// The inode, which may be none.
    pub(super) inode: u32,
    /// The name, which may be none.
    pub(super) name: Vec<u8>,
}

/// Adds the entries of a block to others, without `.` and `..` and what was deleted.
///
/// # Errors
/// [`Ext4Error::Damaged`] with the directory's name.
pub(super) fn parse(block: &[u8], directory: &str, entries: &mut Vec<RawEntry>) -> Result<(), Ext4Error> {
    let damaged = |reason| Ext4Error::Damaged { object: directory.to_owned(), reason };
    let mut rest = block;
    while !rest.is_empty() {
        let Some((header, behind)) = rest.split_at_checked(HEADER_BYTES) else {
            return Err(damaged("a directory entry is cut off"));
        };
        let inode = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
        let length = usize::from(u16::from_ne_bytes([header[4], header[5]]));
        let name_bytes = usize::from(header[6]);
        if length < HEADER_BYTES + name_bytes || length > rest.len() || !length.is_multiple_of(4) {
            return Err(damaged("a directory entry has an impossible length"));
        }
        let name = &behind[..name_bytes];
        if inode != 0 && name != b"." && name != b".." {
            check_name(name).map_err(damaged)?;
            entries.push(RawEntry { inode, name: name.to_vec() });
        }
        rest = &rest[length..];
    }
    Ok(())
}
