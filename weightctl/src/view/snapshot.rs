//! Snapshots.

use jiff::Timestamp;
use serde::Serialize;
use weightd_proto::v1;
use weightd_types::display_bytes;

use super::table::{columns, pairs, percent, short_id, time};
use crate::output::View;

/// How far a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Complete,
    Loading,
    Interrupted,
    Unknown,
}

/// A snapshot, as scripts see it.
#[derive(Debug, Serialize)]
pub(crate) struct SnapshotView {
    pub(crate) id: String,
    pub(crate) source: String,
    layout: &'static str,
    pub(crate) state: State,
    pub(crate) size_bytes: u64,
    present_bytes: u64,
    pub(crate) object_count: u32,
    pinned: bool,
    wanted: bool,
    in_use: bool,
    resolved_at: Option<Timestamp>,
    last_used_at: Option<Timestamp>,
    pub(crate) directory: Option<String>,
}

/// All snapshots of a store.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct SnapshotsView(Vec<SnapshotView>);

/// What a prefetch brought.
#[derive(Debug, Serialize)]
pub(crate) struct PrefetchView {
    pub(crate) snapshot: SnapshotView,
    pub(crate) fetched_bytes: u64,
    pub(crate) reused_bytes: u64,
    pub(crate) elapsed_seconds: f64,
    pub(crate) unverifiable_objects: u32,
}

/// A prefetch that the agent goes on with.
#[derive(Debug, Serialize)]
pub(crate) struct DetachedView {
    pub(crate) snapshot_id: String,
}

impl State {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Loading => "loading",
            Self::Interrupted => "interrupted",
            Self::Unknown => "unknown",
        }
    }
}

impl From<v1::SnapshotState> for State {
    fn from(state: v1::SnapshotState) -> Self {
        match state {
            v1::SnapshotState::Complete => Self::Complete,
            v1::SnapshotState::Loading => Self::Loading,
            v1::SnapshotState::Interrupted => Self::Interrupted,
            v1::SnapshotState::Unspecified => Self::Unknown,
        }
    }
}

impl From<v1::SnapshotInfo> for SnapshotView {
    fn from(info: v1::SnapshotInfo) -> Self {
        let state = State::from(info.state());
        let layout = match info.layout() {
            v1::Layout::Aligned => "aligned",
            v1::Layout::Original => "original",
            v1::Layout::Unspecified => "unknown",
        };
        Self {
            id: info.id,
            source: info.source,
            layout,
            state,
            size_bytes: info.size_bytes,
            present_bytes: info.present_bytes,
            object_count: info.object_count,
            pinned: info.pinned,
            wanted: info.wanted,
            in_use: info.in_use,
            resolved_at: info.resolved_at.and_then(|at| Timestamp::new(at.seconds, at.nanos).ok()),
            last_used_at: info.last_used_at.and_then(|at| Timestamp::new(at.seconds, at.nanos).ok()),
            directory: Some(info.directory).filter(|directory| !directory.is_empty()),
        }
    }
}

impl SnapshotView {
    fn state_words(&self) -> String {
        match self.state {
            State::Complete => "complete".to_owned(),
            state => format!("{} {}", state.as_str(), percent(self.present_bytes, self.size_bytes)),
        }
    }

    fn marks(&self) -> String {
        let marks = [(self.pinned, "pinned"), (self.wanted, "wanted"), (self.in_use, "in use")];
        let held: Vec<_> = marks.iter().filter(|(held, _)| *held).map(|(_, word)| *word).collect();
        held.join(", ")
    }
}

impl View for SnapshotView {
    fn table(&self) -> String {
        let marks = if self.marks().is_empty() { String::new() } else { format!(", {}", self.marks()) };
        pairs(&[
            ("snapshot", self.id.clone()),
            ("source", self.source.clone()),
            ("state", self.state_words() + &marks),
            ("files", format!("{} ({})", self.object_count, display_bytes(self.size_bytes))),
            ("layout", self.layout.to_owned()),
            ("resolved", time(self.resolved_at)),
            ("last used", time(self.last_used_at)),
            ("directory", self.directory.clone().unwrap_or_else(|| "-".to_owned())),
        ])
    }
}

impl From<Vec<v1::SnapshotInfo>> for SnapshotsView {
    fn from(snapshots: Vec<v1::SnapshotInfo>) -> Self {
        Self(snapshots.into_iter().map(SnapshotView::from).collect())
    }
}

impl SnapshotsView {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl View for SnapshotsView {
    fn table(&self) -> String {
        let row = |snapshot: &SnapshotView| {
            vec![
                short_id(&snapshot.id),
                snapshot.source.clone(),
                snapshot.state_words(),
                display_bytes(snapshot.size_bytes),
                snapshot.object_count.to_string(),
                time(snapshot.last_used_at),
                snapshot.marks(),
            ]
        };
        let headings = [
            ("ID", false),
            ("SOURCE", false),
            ("STATE", false),
            ("SIZE", true),
            ("FILES", true),
            ("LAST USED", false),
            ("", false),
        ];
        if self.is_empty() { String::new() } else { columns(&headings, self.0.iter().map(row)) }
    }
}

impl From<v1::Completed> for PrefetchView {
    fn from(completed: v1::Completed) -> Self {
        Self {
            snapshot: completed.snapshot.unwrap_or_default().into(),
            fetched_bytes: completed.fetched_bytes,
            reused_bytes: completed.reused_bytes,
            elapsed_seconds: completed.elapsed_seconds,
            unverifiable_objects: completed.unverifiable_objects,
        }
    }
}

impl View for PrefetchView {
    fn table(&self) -> String {
        self.snapshot.table()
    }
}

impl View for DetachedView {
    fn table(&self) -> String {
        pairs(&[("snapshot", self.snapshot_id.clone())])
    }
}
