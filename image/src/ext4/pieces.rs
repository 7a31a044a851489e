//! Where the contents of a file lie.

use super::{
    error::Ext4Error,
    sys::{Handle, RawInode},
    tree::{Leaf, Node},
};

const EXTENTS_FLAG: u32 = 0x8_0000;
/// Room for more extents than are taken.
const MAX_NODES: u64 = 1 << 14;
/// Besides one for each block, which is one for each extent: some that the file needed once, when it was longer.
const SPARE_NODES: u64 = 64;
/// A file in pieces of 4 KiB could have 4 GiB.
const MAX_EXTENTS: usize = 1 << 20;

/// A piece of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// First byte of it in the file.
    pub(crate) logical: u64,
    /// Its length in bytes.
    pub(crate) bytes: u64,
    /// Where its contents are.
    pub(crate) place: Place,
}

/// Where the contents of a piece of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// From this byte of the disk on.
    Disk(u64),
    /// Nowhere: it reads as zeros.
    Hole,
    /// On the disk there is room for them, but they were never written: it reads as zeros.
    Unwritten,
}

/// Where the contents of a file lie: pieces in order, from its first byte to its last, as long as can be.
///
/// # Errors
/// With `object`'s name, as [`FileSystem::extents`](super::FileSystem::extents).
pub(super) fn pieces(
    handle: &Handle,
    number: u32,
    inode: &RawInode,
    object: &str,
) -> Result<Vec<Extent>, Ext4Error> {
    if inode.flags & EXTENTS_FLAG == 0 {
        let reason = "it is not mapped by extents".to_owned();
        return Err(Ext4Error::Unsupported { object: object.to_owned(), reason });
    }
    let leaves = Leaves::of(handle, number, inode, object)?;
    Ok(join(&leaves, handle.block_bytes() as u64, inode.bytes))
}

/// The extents of a file with the holes between them, those together that follow on each other, up to the file's length.
fn join(leaves: &[Leaf], block_bytes: u64, bytes: u64) -> Vec<Extent> {
    let mut pieces: Vec<Extent> = Vec::new();
    let mut at = 0;
    let end_leaf = Leaf { logical: bytes.div_ceil(block_bytes), physical: 0, blocks: 0, is_written: false };
    for leaf in leaves.iter().chain([&end_leaf]) {
        let hole = Extent {
            logical: at,
            bytes: leaf.logical.saturating_mul(block_bytes).min(bytes).saturating_sub(at),
            place: Place::Hole,
        };
        push(&mut pieces, hole);
        at += hole.bytes;
        let place = if leaf.is_written { Place::Disk(leaf.physical * block_bytes) } else { Place::Unwritten };
        let piece = Extent { logical: at, bytes: (leaf.blocks * block_bytes).min(bytes - at), place };
        push(&mut pieces, piece);
        at += piece.bytes;
    }
    pieces
}

fn push(pieces: &mut Vec<Extent>, piece: Extent) {
    let Some(last) = pieces.last_mut().filter(|_| piece.bytes > 0) else {
        if piece.bytes > 0 {
            pieces.push(piece);
        }
        return;
    };
    let follows = match (last.place, piece.place) {
        (Place::Disk(before), Place::Disk(place)) => before + last.bytes == place,
        (before, place) => before == place,
    };
    if follows {
        last.bytes += piece.bytes;
    } else {
        pieces.push(piece);
    }
}

/// A walk through the extent tree of one inode.
struct Leaves<'a> {
    handle: &'a Handle,
    inode: u32,
    object: &'a str,
    /// How many more nodes it may have: they cost time, and could be the same ones again and again.
    nodes: u64,
    leaves: Vec<Leaf>,
}

impl<'a> Leaves<'a> {
    fn of(
        handle: &'a Handle,
        number: u32,
        inode: &RawInode,
        object: &'a str,
    ) -> Result<Vec<Leaf>, Ext4Error> {
        let blocks = inode.bytes.div_ceil(handle.block_bytes() as u64);
        let nodes = blocks.saturating_add(SPARE_NODES).min(MAX_NODES);
        let mut walk = Self { handle, inode: number, object, nodes, leaves: Vec::new() };
        let root = Node::parse(&inode.root, None).map_err(|reason| walk.damaged(reason))?;
        walk.take(&root)?;
        Ok(walk.leaves)
    }

    fn damaged(&self, reason: &'static str) -> Ext4Error {
        Ext4Error::Damaged { object: self.object.to_owned(), reason }
    }

    /// Goes no deeper than the root's depth, as each node must stand one below the last.
    fn take(&mut self, node: &Node<'_>) -> Result<(), Ext4Error> {
        if node.depth == 0 {
            return node.leaves().try_for_each(|leaf| self.add(leaf));
        }
        let mut bytes = vec![0; self.handle.block_bytes()];
        for block in node.children() {
            let left = self.nodes.checked_sub(1);
            self.nodes = left.ok_or_else(|| self.damaged("its extents have too many nodes"))?;
            let doing = "read the extents of";
            let read = self.handle.read_block(block, &mut bytes);
            read.map_err(Ext4Error::library(doing, self.object))?;
            Node::parse(&bytes, Some(node.depth - 1)).map_err(|reason| self.damaged(reason))?;
            let checked = self.handle.check_extent_block(self.inode, &mut bytes);
            checked.map_err(Ext4Error::library(doing, self.object))?;
            let child = Node::parse(&bytes, Some(node.depth - 1)).map_err(|reason| self.damaged(reason))?;
            self.take(&child)?;
        }
        Ok(())
    }

    fn add(&mut self, leaf: Leaf) -> Result<(), Ext4Error> {
        let end = self.leaves.last().map_or(0, |last| last.logical + last.blocks);
        let blocks = self.handle.blocks();
        if leaf.blocks == 0 || leaf.logical < end {
            return Err(self.damaged("its extents are empty or out of order"));
        }
        if leaf.physical == 0 || leaf.physical + leaf.blocks > blocks {
            return Err(self.damaged("its extents do not lie on the disk"));
        }
        if self.leaves.len() == MAX_EXTENTS {
            return Err(self.damaged("it has too many extents"));
        }
        self.leaves.push(leaf);
        Ok(())
    }
}
