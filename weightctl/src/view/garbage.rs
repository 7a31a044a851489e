//! What was removed.

use serde::Serialize;
use weightd_proto::v1;
use weightd_types::display_bytes;

use super::table::pairs;
use crate::output::View;

/// What `rm` removed.
#[derive(Debug, Serialize)]
pub(crate) struct RemovedView {
    snapshot_ids: Vec<String>,
    freed_bytes: u64,
}

/// What `gc` removed.
#[derive(Debug, Serialize)]
pub(crate) struct GarbageView {
    removed_blobs: u64,
    freed_bytes: u64,
    evicted_snapshot_ids: Vec<String>,
}

impl From<v1::RemoveResponse> for RemovedView {
    fn from(response: v1::RemoveResponse) -> Self {
        Self { snapshot_ids: response.snapshot_ids, freed_bytes: response.freed_bytes }
    }
}

impl From<v1::CollectGarbageResponse> for GarbageView {
    fn from(response: v1::CollectGarbageResponse) -> Self {
        Self {
            removed_blobs: response.removed_blobs,
            freed_bytes: response.freed_bytes,
            evicted_snapshot_ids: response.evicted_snapshot_ids,
        }
    }
}

fn list(ids: &[String]) -> String {
    if ids.is_empty() { "none".to_owned() } else { ids.join(" ") }
}

impl View for RemovedView {
    fn table(&self) -> String {
        pairs(&[("removed", list(&self.snapshot_ids)), ("freed", display_bytes(self.freed_bytes))])
    }
}

impl View for GarbageView {
    fn table(&self) -> String {
        pairs(&[
            ("removed", format!("{} blobs", self.removed_blobs)),
            ("evicted", list(&self.evicted_snapshot_ids)),
            ("freed", display_bytes(self.freed_bytes)),
        ])
    }
}
