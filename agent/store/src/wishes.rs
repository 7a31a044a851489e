//! Models that are wanted on this node: what is kept for them is never evicted, as if it were pinned, until the wish ends.
//!
//! A wish is not a pin. An operator's pin stays until an operator takes it away; a wish names a source, keeps whatever
//! snapshots the agent writes down beside it, and ends with the list it came from.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use weightd_types::{Layout, SnapshotKey, SourceUri};

use crate::{Store, StoreError, store::lock};

/// A model that is wanted on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// Where from.
    pub source: SourceUri,
    /// How its bytes are placed.
    pub layout: Layout,
    /// Higher goes first.
    pub priority: i32,
    /// Names of the snapshots that are kept for it, the one that serves first.
    snapshots: Vec<String>,
}

impl Wish {
    /// One that nothing is kept for yet.
    pub fn new(source: SourceUri, layout: Layout, priority: i32) -> Self {
        Self { source, layout, priority, snapshots: Vec::new() }
    }

    /// The snapshots that are kept for it.
    pub fn snapshots(&self) -> impl Iterator<Item = SnapshotKey> {
        self.snapshots.iter().filter_map(|name| name.parse().ok())
    }

    /// The same wish, with these snapshots kept for it and no others.
    #[must_use]
    pub fn keeping(mut self, snapshots: &[SnapshotKey]) -> Self {
        self.snapshots = snapshots.iter().map(ToString::to_string).collect();
        self
    }

    /// What tells it from others in the index.
    fn name(&self) -> String {
        format!("{} {}", self.layout, self.source)
    }
}

impl Store {
    /// Writes a wish down, in place of what was written of the same source and layout; from then on its snapshots are
    /// kept. Durable when it returns.
    ///
    /// # Errors
    /// [`StoreError::Index`], [`StoreError::Full`].
    pub async fn set_wish(&self, wish: Wish) -> Result<(), StoreError> {
        self.change_wish(wish.name(), Some(wish)).await
    }

    /// Forgets a wish: what was kept for it alone can be evicted from now on. Durable when it returns.
    ///
    /// # Errors
    /// [`StoreError::Index`], [`StoreError::Full`].
    pub async fn forget_wish(&self, wish: &Wish) -> Result<(), StoreError> {
        self.change_wish(wish.name(), None).await
    }

    /// What is wanted on this node.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn wishes(&self) -> Result<Vec<Wish>, StoreError> {
        self.blocking(|store| store.inner.index.wishes()).await
    }

    async fn change_wish(&self, name: String, wish: Option<Wish>) -> Result<(), StoreError> {
        self.blocking(move |store| {
            // One that was chosen for eviction is gone when this goes on, and not half kept.
            let _changing = lock(&store.inner.changing);
            store.inner.index.set_wish(&name, wish.as_ref())?;
            // Several wishes may keep the same snapshot, so all of them are looked at.
            let wanted = store.wanted_snapshots()?;
            for (key, entry) in store.catalog().iter_mut() {
                entry.wanted = wanted.contains(key);
            }
            Ok(())
        })
        .await
    }

    pub(crate) fn wanted_snapshots(&self) -> Result<BTreeSet<SnapshotKey>, StoreError> {
        Ok(self.inner.index.wishes()?.iter().flat_map(Wish::snapshots).collect())
    }
}
