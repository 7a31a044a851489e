//! Numbers of nodes: they mean the same to every agent that serves the connection, today's and the next.
//!
//! ```text
//! bits 63..27  the first 37 bits of a digest of the snapshot's key, never 0
//! bit  26      1 when the file is read through its blob by the kernel, 0 when the agent is asked
//! bits 25..0   0 the snapshot's own directory, then its files in the manifest's order, then its other directories
//! ```
//! A node that was read through the agent keeps its pages and cannot change over to its blob, so a file has two numbers.

use fuser::INodeNo;
use weightd_types::{Digest, SnapshotKey};

const INDEX_BITS: u32 = 26;
const INDEX_MASK: u64 = (1 << INDEX_BITS) - 1;

/// Most nodes of one snapshot.
pub(crate) const NODES_LIMIT: usize = 1 << INDEX_BITS;

/// The number of a snapshot's nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Family(u64);

/// What a node number says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) family: Family,
    /// Position in the snapshot's tree.
    pub(crate) index: u32,
    /// Whether the kernel reads the blob itself.
    pub(crate) through: bool,
}

impl Family {
    pub(crate) fn of(key: &SnapshotKey) -> Self {
        let digest = Digest::of(key.to_string());
        let [a, b, c, d, e, f, g, h, ..] = *digest.as_bytes();
        let bits = u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> (INDEX_BITS + 1);
        Self(bits.max(1))
    }
}

impl Node {
    /// A snapshot's own directory.
    pub(crate) fn directory(family: Family) -> Self {
        Self { family, index: 0, through: false }
    }

    pub(crate) fn number(self) -> INodeNo {
        let through = u64::from(self.through) << INDEX_BITS;
        INodeNo(self.family.0 << (INDEX_BITS + 1) | through | u64::from(self.index))
    }

    /// `None` for the root, which belongs to no snapshot.
    pub(crate) fn of(number: INodeNo) -> Option<Self> {
        let family = Family(number.0 >> (INDEX_BITS + 1));
        let index = u32::try_from(number.0 & INDEX_MASK).expect("26 bits fit 32");
        (family.0 != 0).then_some(Self { family, index, through: number.0 >> INDEX_BITS & 1 == 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_and_what_it_says_are_the_same() {
        let key: SnapshotKey = format!("{}.aligned", "a1".repeat(32)).parse().unwrap();
        for (index, through) in [(0, false), (1, true), ((1 << INDEX_BITS) - 1, true)] {
            let node = Node { family: Family::of(&key), index, through };
            assert_eq!(Node::of(node.number()), Some(node));
        }
        assert_eq!(Node::of(INodeNo::ROOT), None);
    }
}
