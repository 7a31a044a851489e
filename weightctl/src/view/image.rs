//! Images and exports.

use std::path::Path;

use serde::Serialize;
use weightd_image::{Built, BuiltSnapshot, Exported, Listing, Output as Place, Verified};
use weightd_types::display_bytes;

use super::table::{columns, pairs, short_id};
use crate::output::View;

/// A snapshot that was put somewhere.
#[derive(Debug, Serialize)]
struct PlacedView {
    source: String,
    id: String,
    size_bytes: u64,
    file_count: usize,
}

impl From<&BuiltSnapshot> for PlacedView {
    fn from(snapshot: &BuiltSnapshot) -> Self {
        Self {
            source: snapshot.source.to_string(),
            id: snapshot.key.id.to_string(),
            size_bytes: snapshot.bytes,
            file_count: snapshot.files,
        }
    }
}

fn placed(snapshots: &[PlacedView]) -> String {
    let row = |snapshot: &PlacedView| {
        vec![
            snapshot.source.clone(),
            short_id(&snapshot.id),
            snapshot.file_count.to_string(),
            display_bytes(snapshot.size_bytes),
        ]
    };
    let headings = [("SOURCE", false), ("ID", false), ("FILES", true), ("SIZE", true)];
    columns(&headings, snapshots.iter().map(row))
}

/// An image that was built, and what comes next.
#[derive(Debug, Serialize)]
pub(crate) struct BuiltView {
    output: String,
    disk_bytes: u64,
    output_bytes: u64,
    fetched_bytes: u64,
    elapsed_seconds: f64,
    snapshots: Vec<PlacedView>,
    instructions: String,
}

impl BuiltView {
    pub(crate) fn new(output: &Place, built: &Built, instructions: String) -> Self {
        Self {
            output: output.name(),
            disk_bytes: built.disk_bytes,
            output_bytes: built.output_bytes,
            fetched_bytes: built.fetched_bytes,
            elapsed_seconds: built.elapsed.as_secs_f64(),
            snapshots: built.snapshots.iter().map(PlacedView::from).collect(),
            instructions,
        }
    }
}

impl View for BuiltView {
    fn table(&self) -> String {
        self.instructions.trim_end().to_owned()
    }
}

/// Models that were brought into a directory.
#[derive(Debug, Serialize)]
pub(crate) struct ExportedView {
    directory: String,
    fetched_bytes: u64,
    reused_bytes: u64,
    elapsed_seconds: f64,
    snapshots: Vec<PlacedView>,
}

impl ExportedView {
    pub(crate) fn new(directory: &Path, exported: &Exported) -> Self {
        Self {
            directory: directory.display().to_string(),
            fetched_bytes: exported.fetched_bytes,
            reused_bytes: exported.reused_bytes,
            elapsed_seconds: exported.elapsed.as_secs_f64(),
            snapshots: exported.snapshots.iter().map(PlacedView::from).collect(),
        }
    }
}

impl View for ExportedView {
    fn table(&self) -> String {
        placed(&self.snapshots)
    }
}

/// What an image holds.
#[derive(Debug, Serialize)]
pub(crate) struct ImageView {
    label: String,
    disk_bytes: u64,
    snapshots: Vec<ImageSnapshotView>,
}

#[derive(Debug, Serialize)]
struct ImageSnapshotView {
    source: String,
    id: String,
    layout: &'static str,
    size_bytes: u64,
    files: Vec<ImageFileView>,
}

#[derive(Debug, Serialize)]
struct ImageFileView {
    path: String,
    size_bytes: u64,
}

impl From<Listing> for ImageView {
    fn from(listing: Listing) -> Self {
        let file = |(path, size_bytes): (String, u64)| ImageFileView { path, size_bytes };
        let snapshots = listing.snapshots.into_iter().map(|snapshot| ImageSnapshotView {
            source: snapshot.source.to_string(),
            id: snapshot.key.id.to_string(),
            layout: snapshot.key.layout.as_str(),
            size_bytes: snapshot.files.iter().map(|(_, bytes)| bytes).sum(),
            files: snapshot.files.into_iter().map(file).collect(),
        });
        Self { label: listing.label, disk_bytes: listing.disk_bytes, snapshots: snapshots.collect() }
    }
}

impl View for ImageView {
    fn table(&self) -> String {
        let head = pairs(&[
            ("label", self.label.clone()),
            ("disk", display_bytes(self.disk_bytes)),
            ("models", self.snapshots.len().to_string()),
        ]);
        let rows = self.snapshots.iter().flat_map(|snapshot| {
            let row = |file: &ImageFileView| {
                let size = display_bytes(file.size_bytes);
                vec![snapshot.source.clone(), short_id(&snapshot.id), file.path.clone(), size]
            };
            snapshot.files.iter().map(row)
        });
        let headings = [("SOURCE", false), ("ID", false), ("FILE", false), ("SIZE", true)];
        format!("{head}\n\n{}", columns(&headings, rows))
    }
}

/// What reading an image whole found.
#[derive(Debug, Serialize)]
pub(crate) struct VerifiedImageView {
    checked_bytes: u64,
    blobs: usize,
    snapshots: usize,
    faults: Vec<FaultView>,
}

#[derive(Debug, Serialize)]
struct FaultView {
    path: String,
    offset_bytes: Option<u64>,
    length_bytes: Option<u64>,
    why: String,
}

impl From<Verified> for VerifiedImageView {
    fn from(verified: Verified) -> Self {
        let faults = verified.faults.into_iter().map(|fault| FaultView {
            path: fault.path.display().to_string(),
            offset_bytes: fault.range.map(|range| range.start),
            length_bytes: fault.range.map(|range| range.len()),
            why: fault.why,
        });
        Self {
            checked_bytes: verified.checked_bytes,
            blobs: verified.blobs,
            snapshots: verified.listing.snapshots.len(),
            faults: faults.collect(),
        }
    }
}

impl View for VerifiedImageView {
    fn table(&self) -> String {
        let row = |fault: &FaultView| {
            let range = match (fault.offset_bytes, fault.length_bytes) {
                (Some(offset), Some(length)) => format!("{offset}..{}", offset + length),
                _ => "-".to_owned(),
            };
            vec![fault.path.clone(), range, fault.why.clone()]
        };
        let headings = [("FILE", false), ("BYTES", false), ("WHAT IS WRONG", false)];
        if self.faults.is_empty() { String::new() } else { columns(&headings, self.faults.iter().map(row)) }
    }
}
