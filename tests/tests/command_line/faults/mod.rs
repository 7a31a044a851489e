//! Bad input and faults: each gets its exit code and a message that names the thing and the remedy, and nothing that
//! was whole before is lost.

mod objects;
mod origins;
mod rot;
mod short;
mod stores;
mod usage;

use weightd_harness::FakeGcs;

use crate::place::Place;

/// A snapshot that must stay whole.
const KEPT: &str = "gs://models/kept";

/// A place whose store has [`KEPT`] from the emulator.
async fn with_kept(gcs: &FakeGcs) -> Place {
    let place = Place::new("[fetch]\nattempts = 2").gcs(&gcs.endpoint());
    gcs.create_bucket("models").await.unwrap();
    gcs.upload("models", "kept/config.json", "{}").await.unwrap();
    gcs.upload("models", "kept/tokenizer.bin", vec![7; 9 << 20]).await.unwrap();
    place.run(&format!("prefetch {KEPT}")).done();
    place
}

/// Asserts that [`KEPT`] is as it was.
#[track_caller]
fn assert_kept(place: &Place) {
    place.run(&format!("verify {KEPT} --no-repair")).done();
    let directory = place.path(KEPT);
    assert_eq!(std::fs::read(directory.join("tokenizer.bin")).unwrap(), vec![7; 9 << 20]);
}

/// A safetensors file with this header, and so many bytes after it.
fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 1);
    bytes
}
