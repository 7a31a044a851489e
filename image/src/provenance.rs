//! Where an image's bytes come from: a file in the image, for people and for auditors.

use serde::Serialize;
use weightd_types::Object;

use crate::contents::Contents;

/// Its name in the image.
pub(crate) const NAME: &str = "provenance.json";

#[derive(Serialize)]
struct Provenance<'c> {
    /// What made the image.
    builder: &'static str,
    version: &'static str,
    snapshots: Vec<Snapshot<'c>>,
}

#[derive(Serialize)]
struct Snapshot<'c> {
    source: String,
    id: String,
    layout: &'static str,
    bytes: u64,
    objects: Vec<&'c Object>,
}

/// The file: sources, versions and digests of everything in the image, as the origins say them.
pub(crate) fn describe(contents: &Contents) -> Vec<u8> {
    let snapshots = contents.snapshots.iter().map(|manifest| Snapshot {
        source: manifest.source.to_string(),
        id: manifest.id.to_string(),
        layout: manifest.layout.as_str(),
        bytes: manifest.size(),
        objects: manifest.objects.iter().map(|entry| &entry.object).collect(),
    });
    let provenance = Provenance {
        builder: "weightctl image build",
        version: env!("CARGO_PKG_VERSION"),
        snapshots: snapshots.collect(),
    };
    let mut text =
        serde_json::to_vec_pretty(&provenance).expect("it is made of plain structs with string keys");
    text.push(b'\n');
    text
}
