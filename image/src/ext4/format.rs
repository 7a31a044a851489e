//! What a file system is to be, and how much room that takes.

use super::{
    BLOCK_BYTES, LOST_AND_FOUND_INODE, directory::MIN_ENTRIES_OF_BLOCK, error::Ext4Error, sys::Shape,
    tree::node_count,
};

/// Blocks that one bitmap speaks of: a group.
const GROUP_BLOCKS: u64 = BLOCK_BYTES * 8;
/// Inodes that one bitmap could speak of.
const MAX_GROUP_INODES: u64 = BLOCK_BYTES * 8;
const INODES_OF_BLOCK: u64 = BLOCK_BYTES / 256;
const DESCRIPTORS_OF_BLOCK: u64 = BLOCK_BYTES / 64;
/// With more, the group descriptors would take a large part of the first group.
const MAX_DISK_BYTES: u64 = 64 << 40;

/// What the file system is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Format {
    /// Length of the disk in bytes, at most 64 TiB; what is beyond the last whole block is not used. If a last group of less
    /// than 128 MiB is hardly longer than 200 KiB, it is left out as well: [`Builder::data_end`](super::Builder::data_end).
    pub(crate) disk_bytes: u64,
    /// How many files and directories there can be. Rounded up: each 128 MiB of disk have a multiple of 16.
    pub(crate) inodes: u64,
    /// Blocks of 4096 bytes for directories and extents: [`reserve`].
    pub(crate) reserved_blocks: u64,
    /// Name of the file system, at most 16 bytes.
    pub(crate) label: String,
    /// Identity of the file system; not all zeros.
    pub(crate) uuid: [u8; 16],
    /// Seed of the hashes that a directory index would have.
    pub(crate) hash_seed: [u8; 16],
    /// Every time in it, in seconds since 1970; not 0, by which the library means now.
    pub(crate) time: u32,
}

impl Format {
    /// The library's numbers.
    ///
    /// # Errors
    /// [`Ext4Error::Format`] when there can be no such file system.
    pub(super) fn shape(&self) -> Result<Shape, Ext4Error> {
        let refuse = |why: String| Err(Ext4Error::Format(why));
        let blocks = self.disk_bytes / BLOCK_BYTES;
        let (groups, inodes) = (blocks.div_ceil(GROUP_BLOCKS), own_and(self.inodes));
        let table_blocks = table_blocks(groups.max(1), inodes);
        let most = MAX_GROUP_INODES.saturating_mul(groups).min(u64::from(u32::MAX));
        if self.disk_bytes > MAX_DISK_BYTES {
            return refuse(format!(
                "{} bytes are more than the {MAX_DISK_BYTES} it can have",
                self.disk_bytes
            ));
        }
        if table_blocks.saturating_mul(INODES_OF_BLOCK).saturating_mul(groups) > most {
            return refuse(format!("{} inodes on a disk that can have {most}", self.inodes));
        }
        let needed = metadata_blocks(groups, inodes).saturating_add(self.reserved_blocks);
        if needed >= blocks {
            let needed = needed.saturating_mul(BLOCK_BYTES);
            return refuse(format!("a disk of {} bytes, when its metadata take {needed}", self.disk_bytes));
        }
        if self.uuid == [0; 16] || self.time == 0 {
            return refuse("without an identity or a time".to_owned());
        }
        let Some(label) = padded(&self.label) else {
            return refuse(format!("the label {:?} has a zero byte or more than 16", self.label));
        };
        Ok(Shape {
            blocks,
            inodes: u32::try_from(inodes).map_err(|_| Ext4Error::Format("too many inodes".to_owned()))?,
            log_groups_per_flex: log_of(groups),
            time: self.time,
            uuid: self.uuid,
            hash_seed: self.hash_seed,
            label,
        })
    }
}

/// One flex group holds all, so that the tables of all groups lie in front. (`mke2fs` says 2³¹ for this; the smallest power of
/// two that suffices is less strange to whoever reads it.)
fn log_of(groups: u64) -> u8 {
    u8::try_from(groups.next_power_of_two().trailing_zeros()).unwrap_or(31).max(1)
}

fn padded(label: &str) -> Option<[u8; 16]> {
    let mut padded = [0; 16];
    padded.get_mut(..label.len())?.copy_from_slice(label.as_bytes());
    (!label.contains('\0')).then_some(padded)
}

/// Inodes, with the file system's own ones: the reserved ten, of which the root is one, and `lost+found`.
fn own_and(inodes: u64) -> u64 {
    inodes.saturating_add(u64::from(LOST_AND_FOUND_INODE))
}

/// Blocks of a group's inode table.
fn table_blocks(groups: u64, inodes: u64) -> u64 {
    inodes.div_ceil(groups).div_ceil(INODES_OF_BLOCK)
}

/// Superblock, group descriptors, two bitmaps and an inode table for each group.
fn metadata_blocks(groups: u64, inodes: u64) -> u64 {
    let of_group = table_blocks(groups.max(1), inodes).saturating_add(2);
    of_group.saturating_mul(groups).saturating_add(1 + groups.div_ceil(DESCRIPTORS_OF_BLOCK))
}

/// Blocks that directories and extents take at most, for [`Format::reserved_blocks`].
///
/// `directories` are all but the root and `lost+found`; `entries` are the names in them all, which is files, directories and
/// further links; `files` are the lengths in bytes. The sum of:
///
/// * `directories + 2`, one block each, and `⌈entries / 15⌉`, because 15 names of 255 bytes fit into a block;
/// * for each file of more than 512 MiB, `⌈e / 340⌉` leaves for its `e = ⌈bytes / 128 MiB⌉` extents, and if those are more
///   than 4 (files of more than 170 GiB), a node for each 340 of them.
pub(crate) fn reserve(directories: u64, entries: u64, files: impl IntoIterator<Item = u64>) -> u64 {
    let names = directories.saturating_add(2).saturating_add(entries.div_ceil(MIN_ENTRIES_OF_BLOCK));
    let nodes = files.into_iter().map(|bytes| node_count(bytes.div_ceil(BLOCK_BYTES)));
    nodes.fold(names, u64::saturating_add)
}

/// Length of a disk, in whole groups of 128 MiB, that has room for `data_bytes` of contents, each file's rounded up to 4096,
/// behind the metadata for so many inodes and reserved blocks.
pub(crate) fn disk_bytes(data_bytes: u64, inodes: u64, reserved_blocks: u64) -> u64 {
    let data_blocks = data_bytes.div_ceil(BLOCK_BYTES).saturating_add(reserved_blocks);
    // More groups need more metadata, which may need another group; a group holds far more than its own.
    let (mut groups, mut before) = (1, 0);
    while groups != before && groups <= MAX_DISK_BYTES / BLOCK_BYTES {
        let needed = metadata_blocks(groups, own_and(inodes)).saturating_add(data_blocks);
        (before, groups) = (groups, groups.max(needed.div_ceil(GROUP_BLOCKS)));
    }
    groups.saturating_mul(GROUP_BLOCKS * BLOCK_BYTES)
}
