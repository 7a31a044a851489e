use weightd_types::{ByteRange, Checksums, ObjectPath, Version};

use super::*;

fn object(size: u64) -> Object {
    let checksums = Checksums { crc32c: Some(Crc32c(7)), ..Checksums::default() };
    Object { path: ObjectPath::new("a.bin").unwrap(), size, version: Version::Generation(3), checksums }
}

fn blob_manifest() -> BlobManifest {
    let source: SourceUri = "gs://b/m".parse().unwrap();
    let object = object(CHUNK_BYTES + 1);
    BlobManifest {
        format: FORMAT_VERSION,
        key: BlobKey { id: weightd_types::BlobId::of(&source, &object), layout: Layout::Original },
        url: source.object_url(&object.path),
        blob_bytes: object.size,
        chunk_bytes: CHUNK_BYTES,
        chunk_crc32c: vec![Crc32c(1), Crc32c(2)],
        header_bytes: 0,
        header_crc32c: Crc32c::EMPTY,
        runs: vec![Run { object: ByteRange::new(0, object.size), blob: 0 }],
        object,
    }
}

#[test]
fn manifests_read_back_as_written() {
    let blob = blob_manifest();
    assert_eq!(parse_blob_manifest(&encode(&blob)).unwrap(), blob);
    assert_eq!(blob.placement(&Bytes::new()).unwrap(), Placement::original(CHUNK_BYTES + 1));
    let snapshot = Snapshot::new("gs://b/m".parse().unwrap(), vec![object(5)]).unwrap();
    let manifest = SnapshotManifest::new(&snapshot, Layout::Aligned, 1);
    assert_eq!(parse_snapshot_manifest(&encode(&manifest)).unwrap(), manifest);
    assert_eq!(manifest.snapshot().unwrap(), snapshot);
}

#[test]
fn every_flipped_bit_is_noticed() {
    let whole = encode(&blob_manifest());
    for at in 0..whole.len() - 1 {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        assert!(
            parse_blob_manifest(&damaged).map(|found| found == blob_manifest()).unwrap_or(true),
            "byte {at} was believed"
        );
    }
}

#[test]
fn contradictions_and_newer_formats_are_refused() {
    let refused = |change: fn(&mut BlobManifest)| {
        let mut manifest = blob_manifest();
        change(&mut manifest);
        parse_blob_manifest(&encode(&manifest)).unwrap_err().to_string()
    };
    assert!(refused(|m| m.format = FORMAT_VERSION + 1).contains("reads up to"));
    assert!(refused(|m| m.chunk_crc32c.truncate(1)).contains("checksum per chunk"));
    assert!(refused(|m| m.header_bytes = m.object.size + 1).contains("add up"));
    let mut holes = blob_manifest();
    holes.runs[0].object.end -= 1;
    assert!(holes.placement(&Bytes::new()).is_err());
}

#[test]
fn any_bytes_are_parsed_or_refused_without_a_panic() {
    bolero::check!().for_each(|bytes: &[u8]| {
        // Half of the runs get past the envelope's checksum, which random bytes never would.
        let wrapped = RawValue::from_string(String::from_utf8_lossy(bytes).into_owned()).map(|manifest| {
            let crc32c = Crc32c::of(manifest.get().as_bytes());
            serde_json::to_vec(&Envelope { crc32c, manifest }).unwrap()
        });
        for candidate in [bytes.to_vec(), wrapped.unwrap_or_default()] {
            let _ = parse_snapshot_manifest(&candidate);
            if let Ok(manifest) = parse_blob_manifest(&candidate) {
                let _ = manifest.placement(&Bytes::new());
            }
        }
    });
}
