//! Records of the rooms in the protocol's words.

use weightd_proto::v1::{Layout, ObjectInfo, SnapshotInfo, SnapshotState, TierStatus};
use weightd_store::{SnapshotEntry, SnapshotRecord, Store, TierInfo};

/// A snapshot; `loading` says whether a transfer of it runs.
pub(crate) fn snapshot(record: &SnapshotRecord, present_bytes: u64, loading: bool) -> SnapshotInfo {
    let manifest = &record.manifest;
    let state = match (record.complete, loading) {
        (true, _) => SnapshotState::Complete,
        (false, true) => SnapshotState::Loading,
        (false, false) => SnapshotState::Interrupted,
    };
    SnapshotInfo {
        id: manifest.id.to_string(),
        source: manifest.source.to_string(),
        layout: layout(manifest.layout).into(),
        state: state.into(),
        size_bytes: manifest.size(),
        present_bytes,
        object_count: u32::try_from(manifest.objects.len()).unwrap_or(u32::MAX),
        pinned: record.pinned,
        wanted: record.wanted,
        in_use: record.in_use,
        resolved_at: Some(timestamp(manifest.resolved_at)),
        last_used_at: Some(timestamp(record.last_used_at)),
        directory: record
            .directory
            .as_ref()
            .map_or(String::new(), |path| path.to_string_lossy().into_owned()),
    }
}

/// An object of a snapshot, and how much of it is here.
pub(crate) fn object(
    store: &Store,
    entry: &SnapshotEntry,
    (present_bytes, verified): (u64, bool),
) -> ObjectInfo {
    let tier = store.tier_of(&entry.blob).map_or(String::new(), |path| path.to_string_lossy().into_owned());
    ObjectInfo { blob: entry.blob.to_string(), present_bytes, verified, tier, ..left_out(&entry.object) }
}

/// An object that no snapshot takes.
pub(crate) fn left_out(object: &weightd_types::Object) -> ObjectInfo {
    ObjectInfo {
        path: object.path.to_string(),
        size_bytes: object.size,
        version: object.version.to_string(),
        checksum: object.checksums.describe(),
        ..ObjectInfo::default()
    }
}

/// A read-only tier.
pub(crate) fn tier(tier: &TierInfo) -> TierStatus {
    TierStatus {
        directory: tier.directory.to_string_lossy().into_owned(),
        snapshot_count: u32::try_from(tier.snapshots).unwrap_or(u32::MAX),
        rate_bytes: tier.bytes_per_second.unwrap_or(0),
        writable: tier.is_writable,
    }
}

fn layout(layout: weightd_types::Layout) -> Layout {
    match layout {
        weightd_types::Layout::Original => Layout::Original,
        weightd_types::Layout::Aligned => Layout::Aligned,
    }
}

/// The layout that was asked for; aligned when nothing was said.
pub(crate) fn wanted_layout(layout: Layout) -> weightd_types::Layout {
    match layout {
        Layout::Original => weightd_types::Layout::Original,
        Layout::Aligned | Layout::Unspecified => weightd_types::Layout::Aligned,
    }
}

fn timestamp(seconds: u64) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: i64::try_from(seconds).unwrap_or(i64::MAX), nanos: 0 }
}
