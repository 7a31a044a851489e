//! An index of a sharded model, held to a snapshot.

use std::collections::HashSet;

use weightd_store::SnapshotManifest;
use weightd_types::{ObjectPath, WeightIndex, WeightIndexError};

/// An index all of whose shards are there, and where those of the snapshot are in its manifest.
#[derive(Debug)]
pub struct ShardIndex {
    index: WeightIndex,
    shards: Vec<(String, usize)>,
}

impl ShardIndex {
    /// Reads the index that is object `at` of a manifest. `left_out` is what the selection left out, which need not be there;
    /// without it, anything may be missing.
    ///
    /// # Errors
    /// [`WeightIndexError`] when it is no index, or names a shard that is nowhere.
    pub fn read(
        json: &[u8],
        at: usize,
        manifest: &SnapshotManifest,
        left_out: Option<&[ObjectPath]>,
    ) -> Result<Self, WeightIndexError> {
        let index = WeightIndex::parse(json)?;
        let directory = manifest.objects[at].object.path.directory();
        let path_of = |shard: &str| {
            if directory.is_empty() { shard.to_owned() } else { format!("{directory}/{shard}") }
        };
        let position = |shard: &str| {
            let path = path_of(shard);
            manifest.objects.binary_search_by(|entry| entry.object.path.as_str().cmp(&path)).ok()
        };
        let left_out = left_out.map(|paths| paths.iter().map(ObjectPath::as_str).collect::<HashSet<_>>());
        let is_left_out =
            |shard: &str| left_out.as_ref().is_none_or(|paths| paths.contains(path_of(shard).as_str()));
        index.check_shards(|shard| position(shard).is_some() || is_left_out(shard))?;
        let found = |shard: &str| Some((shard.to_owned(), position(shard)?));
        let shards = index.shards().into_iter().filter_map(found).collect();
        Ok(Self { index, shards })
    }

    /// Shards that are in the snapshot: their names in the index, and which object each of them is.
    pub fn shards(&self) -> &[(String, usize)] {
        &self.shards
    }

    /// Checks that a shard has the tensors that the index says.
    ///
    /// # Errors
    /// [`WeightIndexError`] for the first that it lacks.
    pub fn check_tensors(
        &self,
        shard: &str,
        has_tensor: impl Fn(&str) -> bool,
    ) -> Result<(), WeightIndexError> {
        self.index.check_tensors(shard, has_tensor)
    }
}
