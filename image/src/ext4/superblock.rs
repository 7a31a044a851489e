//! The superblock, looked at before the library opens a file system: it takes what it reads there for lengths of memory.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use super::{
    error::Ext4Error,
    tree::{u16_at, u32_at},
};

const OFFSET_BYTES: u64 = 1024;
const MAGIC: u16 = 0xef53;
const INCOMPATIBLE_64BIT: u32 = 0x80;
const INCOMPATIBLE_RECOVER: u32 = 0x4;
/// Filetype, extents, meta_bg, 64bit, flex_bg, csum_seed, largedir: what neither hides contents nor changes how they are found.
const INCOMPATIBLE_KNOWN: u32 = 0x2 | 0x10 | 0x40 | INCOMPATIBLE_64BIT | 0x200 | 0x2000 | 0x4000;
const READ_ONLY_BIGALLOC: u32 = 0x200;
const READ_ONLY_METADATA_CSUM: u32 = 0x400;
/// Enough for 256 TiB; their descriptors take 128 MiB of memory.
const MAX_GROUPS: u64 = 1 << 21;

/// What the superblock says, as far as it was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Superblock {
    /// Length of a block in bytes.
    pub(super) block_bytes: u64,
    /// Length of the file system in blocks.
    pub(super) blocks: u64,
    /// Name of the file system.
    pub(super) label: String,
    /// Identity of the file system.
    pub(super) uuid: [u8; 16],
}

/// Reads and checks the superblock of a file or block device.
pub(super) fn read(path: &Path) -> Result<Superblock, Ext4Error> {
    let object = path.display().to_string();
    let mut file = File::open(path).map_err(Ext4Error::system("open", &object))?;
    let disk_bytes = file.seek(SeekFrom::End(0)).map_err(Ext4Error::system("measure", &object))?;
    let mut bytes = [0; 1024];
    if disk_bytes < OFFSET_BYTES + bytes.len() as u64 {
        return Err(Ext4Error::Damaged { object, reason: "it is too short for a superblock" });
    }
    file.seek(SeekFrom::Start(OFFSET_BYTES)).map_err(Ext4Error::system("read", &object))?;
    file.read_exact(&mut bytes).map_err(Ext4Error::system("read", &object))?;
    if u16_at(&bytes, 0x38) != MAGIC {
        return Err(Ext4Error::Damaged { object, reason: "it does not begin as an ext4 file system" });
    }
    if let Some(reason) = unsupported(&bytes) {
        return Err(Ext4Error::Unsupported { object, reason });
    }
    parse(&bytes, disk_bytes).map_err(|reason| Ext4Error::Damaged { object, reason })
}

fn unsupported(bytes: &[u8]) -> Option<String> {
    let (incompatible, read_only) = (u32_at(bytes, 0x60), u32_at(bytes, 0x64));
    let unknown = incompatible & !INCOMPATIBLE_KNOWN;
    if incompatible & INCOMPATIBLE_RECOVER != 0 {
        return Some("its journal must be replayed first: mount it once, or run e2fsck".to_owned());
    }
    if unknown != 0 || read_only & READ_ONLY_BIGALLOC != 0 {
        return Some(format!("it has features that are not known here (incompatible {unknown:#x})"));
    }
    (u32_at(bytes, 0x4c) == 0).then(|| "its revision is that of 1993".to_owned())
}

fn parse(bytes: &[u8], disk_bytes: u64) -> Result<Superblock, &'static str> {
    let log_block_bytes = u32_at(bytes, 0x18);
    if log_block_bytes > 5 {
        return Err("its blocks have an impossible length");
    }
    let block_bytes = 1024_u64 << log_block_bytes;
    let is_64bit = u32_at(bytes, 0x60) & INCOMPATIBLE_64BIT != 0;
    let high = if is_64bit { u32_at(bytes, 0x150) } else { 0 };
    let blocks = u64::from(u32_at(bytes, 4)) | u64::from(high) << 32;
    if blocks.checked_mul(block_bytes).is_none_or(|bytes| bytes > disk_bytes) {
        return Err("it is shorter than its superblock says");
    }
    if u32_at(bytes, 0x14) != u32::from(log_block_bytes == 0) || u32_at(bytes, 0x1c) != log_block_bytes {
        return Err("its first block or its fragments are not what they must be");
    }
    // The one bit that no checksum covers, as without it there are none.
    let has_checksums = u32_at(bytes, 0x64) & READ_ONLY_METADATA_CSUM != 0;
    if !has_checksums && bytes[0x175] != 0 && u32_at(bytes, 0x3fc) != 0 {
        return Err("it says that it has no checksums, yet it has one");
    }
    check_groups(bytes, block_bytes, blocks)?;
    let inode_bytes = u64::from(u16_at(bytes, 0x58));
    if !inode_bytes.is_power_of_two() || !(128..=block_bytes).contains(&inode_bytes) {
        return Err("its inodes have an impossible length");
    }
    let descriptor_bytes = u16_at(bytes, 0xfe);
    if is_64bit && descriptor_bytes != 64 {
        return Err("its group descriptors have an impossible length");
    }
    let label = bytes[0x78..0x88].split(|byte| *byte == 0).next().unwrap_or_default();
    let uuid = std::array::from_fn(|i| bytes[0x68 + i]);
    Ok(Superblock { block_bytes, blocks, label: String::from_utf8_lossy(label).into_owned(), uuid })
}

fn check_groups(bytes: &[u8], block_bytes: u64, blocks: u64) -> Result<(), &'static str> {
    let [group_blocks, group_inodes, inodes] = [0x20, 0x28, 0].map(|at| u64::from(u32_at(bytes, at)));
    let most = block_bytes * 8;
    if !(256..=most).contains(&group_blocks) || !(8..=most).contains(&group_inodes) {
        return Err("its groups have an impossible length");
    }
    let groups = blocks.saturating_sub(u64::from(block_bytes == 1024)).div_ceil(group_blocks);
    if groups == 0 || groups > MAX_GROUPS || groups * group_inodes != inodes {
        return Err("its lengths contradict each other");
    }
    Ok(())
}
