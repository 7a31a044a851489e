//! Volumes.

use jiff::Timestamp;
use serde::Serialize;
use weightd_proto::v1;
use weightd_types::display_bytes;

use super::{
    snapshot::State,
    table::{columns, pairs, percent, short_id, time},
};
use crate::output::View;

/// One volume.
#[derive(Debug, Serialize)]
pub(crate) struct VolumeView {
    target: String,
    source: String,
    snapshot: String,
    serving: &'static str,
    state: State,
    size_bytes: u64,
    present_bytes: u64,
}

/// Volumes, and what went wrong with them.
#[derive(Debug, Serialize)]
pub(crate) struct VolumesView {
    volumes: Vec<VolumeView>,
    events: Vec<EventView>,
}

/// Something that went wrong.
#[derive(Debug, Serialize)]
struct EventView {
    at: Option<Timestamp>,
    source: String,
    snapshot: String,
    path: String,
    message: String,
}

impl From<v1::VolumeInfo> for VolumeView {
    fn from(volume: v1::VolumeInfo) -> Self {
        let serving = match volume.serving() {
            v1::VolumeServing::Bind => "bind",
            v1::VolumeServing::Passthrough => "passthrough",
            v1::VolumeServing::Fuse => "fuse",
            v1::VolumeServing::Unspecified => "unknown",
        };
        let state = State::from(volume.state());
        let v1::VolumeInfo { target_path, snapshot, source, size_bytes, present_bytes, .. } = volume;
        Self { target: target_path, source, snapshot, serving, state, size_bytes, present_bytes }
    }
}

impl From<v1::ListVolumesResponse> for VolumesView {
    fn from(response: v1::ListVolumesResponse) -> Self {
        let event = |event: v1::VolumeEvent| {
            let at = event.at.and_then(|at| Timestamp::new(at.seconds, at.nanos).ok());
            let v1::VolumeEvent { source, snapshot, path, message, .. } = event;
            EventView { at, source, snapshot, path, message }
        };
        Self {
            volumes: response.volumes.into_iter().map(VolumeView::from).collect(),
            events: response.events.into_iter().map(event).collect(),
        }
    }
}

impl View for VolumeView {
    fn table(&self) -> String {
        pairs(&[
            ("target", self.target.clone()),
            ("source", self.source.clone()),
            ("snapshot", short_id(&self.snapshot)),
            ("serving", self.serving.to_owned()),
            ("state", self.state.as_str().to_owned()),
            ("size", display_bytes(self.size_bytes)),
            ("present", percent(self.present_bytes, self.size_bytes)),
        ])
    }
}

impl View for VolumesView {
    fn table(&self) -> String {
        if self.volumes.is_empty() && self.events.is_empty() {
            return String::new();
        }
        let rows = self.volumes.iter().map(|volume| {
            vec![
                volume.target.clone(),
                volume.source.clone(),
                volume.serving.to_owned(),
                volume.state.as_str().to_owned(),
                percent(volume.present_bytes, volume.size_bytes),
                display_bytes(volume.size_bytes),
            ]
        });
        let headings = [
            ("TARGET", false),
            ("SOURCE", false),
            ("SERVING", false),
            ("STATE", false),
            ("PRESENT", true),
            ("SIZE", true),
        ];
        let mut text = columns(&headings, rows);
        if !self.events.is_empty() {
            let rows = self.events.iter().map(|event| {
                let name = [event.source.as_str(), event.path.as_str()].join(" ");
                vec![time(event.at), name.trim_end().to_owned(), event.message.clone()]
            });
            text += "\n\n";
            text += &columns(&[("AT", false), ("ABOUT", false), ("EVENT", false)], rows);
        }
        text
    }
}
