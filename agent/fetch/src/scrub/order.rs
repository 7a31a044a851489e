//! Whose turn it is.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{BuildHasher, Hasher, RandomState},
};

use weightd_types::BlobKey;

/// What was read longest ago goes first, and before it what never was, in an order of this process's own: an agent that
/// is restarted often would otherwise read the same blobs each time, and the others never.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// When each was read: after how many others.
    read: HashMap<BlobKey, u64>,
    count: u64,
    own: RandomState,
}

impl Order {
    /// The next round of what is stored now. What is not stored is forgotten.
    pub(super) fn round(&mut self, stored: BTreeSet<BlobKey>) -> Vec<BlobKey> {
        self.read.retain(|key, _| stored.contains(key));
        let mut round: Vec<_> = stored.into_iter().collect();
        round.sort_by_cached_key(|key| (self.read.get(key).copied(), self.own.hash_one(key)));
        round
    }

    /// A blob was read.
    pub(super) fn was_read(&mut self, key: BlobKey) {
        self.count += 1;
        self.read.insert(key, self.count);
    }
}

/// A number below `count`, another each time; 0 for 0.
pub(super) fn anywhere(count: u32) -> u32 {
    let drawn = RandomState::new().build_hasher().finish() % u64::from(count.max(1));
    u32::try_from(drawn).expect("it is below a number of 32 bits")
}

#[cfg(test)]
mod tests {
    use weightd_types::{BlobId, Layout};

    use super::*;

    fn keys(count: u32) -> BTreeSet<BlobKey> {
        let id = |at: u32| format!("{at:064x}").parse::<BlobId>().unwrap();
        (0..count).map(|at| BlobKey { id: id(at), layout: Layout::Original }).collect()
    }

    #[test]
    fn each_round_has_every_blob_once_and_what_was_read_longest_ago_first() {
        let mut order = Order::default();
        let first = order.round(keys(10));
        assert_eq!(first.iter().copied().collect::<BTreeSet<_>>(), keys(10));
        for key in first.iter().rev() {
            order.was_read(*key);
        }
        let second = order.round(keys(12));
        assert!(second[..2].iter().all(|key| !first.contains(key)), "what is new was never read");
        assert!(second[2..].iter().eq(first.iter().rev()));
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let mut order = Order::default();
        order.round(keys(10)).into_iter().for_each(|key| order.was_read(key));
        assert_eq!(order.round(keys(1)).len(), 1);
        assert_eq!(order.read.len(), 1);
    }

    #[test]
    fn processes_begin_with_different_blobs() {
        let firsts: BTreeSet<_> = (0..20).map(|_| Order::default().round(keys(100))[0]).collect();
        assert!(firsts.len() > 1);
        let chunks: BTreeSet<_> = (0..50).map(|_| anywhere(100)).collect();
        assert!(chunks.len() > 1 && chunks.iter().all(|chunk| *chunk < 100));
        assert_eq!((anywhere(0), anywhere(1)), (0, 0));
    }
}
