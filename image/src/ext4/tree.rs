//! Extent trees: the nodes of one file in one piece, made; and nodes of any file, read.
//!
//! A node is a header of 12 bytes and entries of 12 bytes: in leaves extents, above them where the next nodes are. All
//! numbers are little-endian. The root lies in the inode and has room for 4 entries, a block for as many as fit.

use super::{BLOCK_BYTES, sys::ROOT_BYTES};

/// Longest extent, in blocks.
pub(super) const EXTENT_BLOCKS: u64 = 1 << 15;
/// Entries of a root.
const ROOT_ENTRIES: usize = 4;
/// Entries of a node of its own, which ends with a checksum.
const NODE_ENTRIES: usize = entries_of(4096);
const ENTRY_BYTES: usize = 12;
const MAGIC: u16 = 0xf30a;
/// The kernel knows none deeper.
const MAX_DEPTH: u16 = 5;

/// How many entries fit into a block, behind the header and before the checksum.
pub(super) const fn entries_of(block_bytes: usize) -> usize {
    (block_bytes - ENTRY_BYTES - 4) / ENTRY_BYTES
}

/// Blocks that the nodes of a file in one piece take.
pub(super) fn node_count(blocks: u64) -> u64 {
    let (mut entries, mut nodes) = (blocks.div_ceil(EXTENT_BLOCKS), 0);
    while entries > ROOT_ENTRIES as u64 {
        entries = entries.div_ceil(NODE_ENTRIES as u64);
        nodes += entries;
    }
    nodes
}

/// The extents of a file, ready to be written.
#[derive(Debug)]
pub(super) struct Tree {
    /// What belongs into the inode.
    pub(super) root: [u8; ROOT_BYTES],
    /// Nodes with their blocks, without their checksums.
    pub(super) nodes: Vec<(u64, Vec<u8>)>,
}

/// An entry that is to be written, with the first of the file's blocks that it is about.
struct NewEntry {
    logical: u32,
    bytes: [u8; ENTRY_BYTES],
}

impl Tree {
    /// The tree of a file that lies in one piece from block `first` on. Its nodes go into the blocks from `node` on, as
    /// many as [`node_count`] says. `None` for files of more than 2³² − 1 blocks.
    pub(super) fn of_piece(first: u64, blocks: u64, node: u64) -> Option<Self> {
        u32::try_from(blocks).ok()?;
        let (mut nodes, mut depth) = (Vec::new(), 0);
        let mut entries = extents(first, blocks)?;
        while entries.len() > ROOT_ENTRIES {
            let mut above = Vec::new();
            for (entries, block) in entries.chunks(NODE_ENTRIES).zip(node + nodes.len() as u64..) {
                let mut bytes = vec![0; usize::try_from(BLOCK_BYTES).ok()?];
                write_node(&mut bytes, NODE_ENTRIES, depth, entries)?;
                nodes.push((block, bytes));
                above.push(index_entry(entries[0].logical, block)?);
            }
            (entries, depth) = (above, depth + 1);
        }
        let mut root = [0; ROOT_BYTES];
        write_node(&mut root, ROOT_ENTRIES, depth, &entries)?;
        Some(Self { root, nodes })
    }
}

fn extents(first: u64, blocks: u64) -> Option<Vec<NewEntry>> {
    let step = usize::try_from(EXTENT_BLOCKS).ok()?;
    let starts = (0..blocks).step_by(step);
    let entry = |start: u64| {
        let (logical, (low, high)) = (u32::try_from(start).ok()?, split(first + start)?);
        let length = u16::try_from((blocks - start).min(EXTENT_BLOCKS)).ok()?;
        let parts = [&logical.to_le_bytes()[..], &length.to_le_bytes(), &high, &low];
        Some(NewEntry { logical, bytes: parts.concat().try_into().ok()? })
    };
    starts.map(entry).collect()
}

fn index_entry(logical: u32, node: u64) -> Option<NewEntry> {
    let (low, high) = split(node)?;
    let parts = [&logical.to_le_bytes()[..], &low, &high, &[0; 2]];
    Some(NewEntry { logical, bytes: parts.concat().try_into().ok()? })
}

/// The 32 lower and the 16 higher bits of a block's number.
fn split(block: u64) -> Option<([u8; 4], [u8; 2])> {
    let bytes = block.to_le_bytes();
    (block >> 48 == 0).then_some(([bytes[0], bytes[1], bytes[2], bytes[3]], [bytes[4], bytes[5]]))
}

fn write_node(node: &mut [u8], capacity: usize, depth: u16, entries: &[NewEntry]) -> Option<()> {
    let count = u16::try_from(entries.len()).ok()?;
    let numbers = [MAGIC, count, u16::try_from(capacity).ok()?, depth];
    for (place, number) in node.chunks_exact_mut(2).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    for (place, entry) in node.chunks_exact_mut(ENTRY_BYTES).skip(1).zip(entries) {
        place.copy_from_slice(&entry.bytes);
    }
    Some(())
}

/// A node that was read, of which only this is known: its header fits to where it stands.
#[derive(Debug)]
pub(super) struct Node<'a> {
    /// How many nodes lie below it until an extent.
    pub(super) depth: u16,
    entries: &'a [u8],
}

/// An entry of a leaf, in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Leaf {
    /// First of the file's blocks.
    pub(super) logical: u64,
    /// First of the disk's blocks.
    pub(super) physical: u64,
    /// How many.
    pub(super) blocks: u64,
    /// Whether they were written; otherwise they read as zeros.
    pub(super) is_written: bool,
}

impl<'a> Node<'a> {
    /// The node in a root or block. `depth`, where its parent says it, must be its own.
    pub(super) fn parse(bytes: &'a [u8], depth: Option<u16>) -> Result<Self, &'static str> {
        let capacity = if bytes.len() == ROOT_BYTES { ROOT_ENTRIES } else { entries_of(bytes.len()) };
        let [magic, count, max, own_depth] = [0, 2, 4, 6].map(|at| u16_at(bytes, at));
        if magic != MAGIC {
            return Err("an extent node does not begin as one");
        }
        if usize::from(max) > capacity || count > max {
            return Err("an extent node has more entries than room");
        }
        if own_depth > MAX_DEPTH || depth.is_some_and(|depth| depth != own_depth) {
            return Err("an extent node stands at the wrong depth");
        }
        if own_depth > 0 && count == 0 {
            return Err("an extent node that should have others below it has none");
        }
        let entries = &bytes[ENTRY_BYTES..ENTRY_BYTES * (1 + usize::from(count))];
        Ok(Self { depth: own_depth, entries })
    }

    /// The blocks of the nodes below.
    pub(super) fn children(&self) -> Vec<u64> {
        let child = |entry: &[u8]| u64::from(u32_at(entry, 4)) | u64::from(u16_at(entry, 8)) << 32;
        self.entries.chunks_exact(ENTRY_BYTES).map(child).collect()
    }

    /// The extents of a leaf.
    pub(super) fn leaves(&self) -> impl Iterator<Item = Leaf> {
        self.entries.chunks_exact(ENTRY_BYTES).map(|entry| {
            let length = u64::from(u16_at(entry, 4));
            let is_written = length <= EXTENT_BLOCKS;
            Leaf {
                logical: u64::from(u32_at(entry, 0)),
                physical: u64::from(u32_at(entry, 8)) | u64::from(u16_at(entry, 6)) << 32,
                blocks: if is_written { length } else { length - EXTENT_BLOCKS },
                is_written,
            }
        })
    }
}

/// Two bytes as a number.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Four bytes as a number.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}
