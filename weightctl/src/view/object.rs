//! The files of a snapshot, stored or only resolved.

use serde::Serialize;
use weightd_proto::v1;
use weightd_types::display_bytes;

use super::{
    SnapshotView,
    table::{columns, pairs, percent},
};
use crate::output::View;

/// What agents say of an object whose origin publishes no checksum.
const NO_CHECKSUM: &str = "none";

/// One file.
#[derive(Debug, Serialize)]
pub(crate) struct ObjectView {
    path: String,
    size_bytes: u64,
    version: String,
    checksum: String,
    blob: String,
    present_bytes: u64,
    verified: bool,
    /// Directory of the read-only tier it would be read from.
    tier: Option<String>,
}

/// A snapshot with its files.
#[derive(Debug, Serialize)]
pub(crate) struct ObjectsView {
    snapshot: SnapshotView,
    objects: Vec<ObjectView>,
}

/// What a prefetch would take.
#[derive(Debug, Serialize)]
pub(crate) struct ResolveView {
    snapshot_id: String,
    source: String,
    total_bytes: u64,
    missing_bytes: u64,
    objects: Vec<ObjectView>,
    left_out: Vec<ObjectView>,
}

impl From<v1::ObjectInfo> for ObjectView {
    fn from(info: v1::ObjectInfo) -> Self {
        let v1::ObjectInfo { path, size_bytes, version, checksum, blob, present_bytes, verified, tier } =
            info;
        let tier = Some(tier).filter(|tier| !tier.is_empty());
        Self { path, size_bytes, version, checksum, blob, present_bytes, verified, tier }
    }
}

impl ObjectView {
    fn row(&self) -> Vec<String> {
        let here = match (self.verified, self.present_bytes) {
            // Only its length could be compared.
            (true, _) if self.checksum == NO_CHECKSUM => "complete".to_owned(),
            (true, _) => "verified".to_owned(),
            (false, 0) if self.size_bytes > 0 => "-".to_owned(),
            (false, present) => percent(present, self.size_bytes),
        };
        let from = match &self.tier {
            Some(tier) => tier.clone(),
            None if self.present_bytes > 0 || self.verified => "store".to_owned(),
            None => "origin".to_owned(),
        };
        vec![
            self.path.clone(),
            display_bytes(self.size_bytes),
            here,
            from,
            self.version.clone(),
            self.checksum.clone(),
        ]
    }
}

fn files(objects: &[ObjectView]) -> String {
    let headings = [
        ("FILE", false),
        ("SIZE", true),
        ("HERE", false),
        ("READ FROM", false),
        ("VERSION", false),
        ("CHECKSUM", false),
    ];
    columns(&headings, objects.iter().map(ObjectView::row))
}

fn views(objects: Vec<v1::ObjectInfo>) -> Vec<ObjectView> {
    objects.into_iter().map(ObjectView::from).collect()
}

impl From<v1::GetResponse> for ObjectsView {
    fn from(response: v1::GetResponse) -> Self {
        Self { snapshot: response.snapshot.unwrap_or_default().into(), objects: views(response.objects) }
    }
}

impl View for ObjectsView {
    fn table(&self) -> String {
        format!("{}\n\n{}", self.snapshot.table(), files(&self.objects))
    }
}

impl From<v1::ResolveResponse> for ResolveView {
    fn from(response: v1::ResolveResponse) -> Self {
        Self {
            snapshot_id: response.snapshot_id,
            source: response.source,
            total_bytes: response.total_bytes,
            missing_bytes: response.missing_bytes,
            objects: views(response.objects),
            left_out: views(response.left_out),
        }
    }
}

impl View for ResolveView {
    fn table(&self) -> String {
        let left_out_bytes: u64 = self.left_out.iter().map(|object| object.size_bytes).sum();
        let head = pairs(&[
            ("snapshot", self.snapshot_id.clone()),
            ("source", self.source.clone()),
            ("files", format!("{} ({})", self.objects.len(), display_bytes(self.total_bytes))),
            ("to fetch", display_bytes(self.missing_bytes)),
            ("left out", format!("{} ({})", self.left_out.len(), display_bytes(left_out_bytes))),
        ]);
        format!("{head}\n\n{}", files(&self.objects))
    }
}
