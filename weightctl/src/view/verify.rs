//! What a check of the store found.

use serde::Serialize;
use weightd_proto::v1;

use super::table::columns;
use crate::output::View;

/// A chunk whose bytes are not what was recorded.
#[derive(Debug, Serialize)]
pub(crate) struct BadChunkView {
    path: String,
    source: String,
    blob: String,
    offset_bytes: u64,
    length_bytes: u64,
    repaired: bool,
    failure: Option<String>,
}

/// A check and what it found.
#[derive(Debug, Serialize)]
pub(crate) struct VerifyView {
    pub(crate) checked_bytes: u64,
    pub(crate) checked_blobs: u64,
    pub(crate) bad_chunks: u64,
    pub(crate) repaired_chunks: u64,
    bad: Vec<BadChunkView>,
}

impl From<v1::BadChunk> for BadChunkView {
    fn from(bad: v1::BadChunk) -> Self {
        Self {
            path: bad.path,
            source: bad.source,
            blob: bad.blob,
            offset_bytes: bad.offset_bytes,
            length_bytes: bad.length_bytes,
            repaired: bad.repaired,
            failure: Some(bad.failure).filter(|failure| !failure.is_empty()),
        }
    }
}

impl VerifyView {
    pub(crate) fn new(summary: v1::VerifySummary, bad: Vec<BadChunkView>) -> Self {
        Self {
            checked_bytes: summary.checked_bytes,
            checked_blobs: summary.checked_blobs,
            bad_chunks: summary.bad_chunks,
            repaired_chunks: summary.repaired_chunks,
            bad,
        }
    }
}

impl View for VerifyView {
    fn table(&self) -> String {
        let row = |bad: &BadChunkView| {
            let outcome = match (&bad.failure, bad.repaired) {
                (_, true) => "fetched again".to_owned(),
                (Some(failure), false) => failure.clone(),
                (None, false) => "bad".to_owned(),
            };
            let range = format!("{}..{}", bad.offset_bytes, bad.offset_bytes + bad.length_bytes);
            vec![bad.path.clone(), bad.source.clone(), range, outcome]
        };
        let headings = [("FILE", false), ("SOURCE", false), ("BYTES", false), ("OUTCOME", false)];
        if self.bad.is_empty() { String::new() } else { columns(&headings, self.bad.iter().map(row)) }
    }
}
