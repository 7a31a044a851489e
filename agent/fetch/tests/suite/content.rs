//! Objects that are not what they should be, and those that are in every shape.

use bytes::Bytes;
use md5::{Digest as _, Md5};
use sha1::Sha1;
use weightd_fetch::{Config, FetchError, Fetcher};
use weightd_source::MemoryOrigin;
use weightd_types::{Checksums, Crc32c, Digest, Layout, Selection, SourceUri, WeightIndex};

use crate::common::{Fixture, MODEL, assert_holds, open_with, put_model, safetensors, soon};

fn checksums_of(kind: &str, bytes: &[u8]) -> Checksums {
    let mut sums = Checksums::default();
    match kind {
        "sha256" => sums.sha256 = Some(Digest::of(bytes)),
        "md5" => sums.md5 = Some(Md5::digest(bytes).into()),
        "git" => {
            let mut sum = Sha1::new_with_prefix(format!("blob {}\0", bytes.len()));
            sum.update(bytes);
            sums.git_sha1 = Some(sum.finalize().into());
        }
        "crc32c" => sums.crc32c = Some(Crc32c::of(bytes)),
        _ => {}
    }
    sums
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_checksum_is_compared() {
    let shard = safetensors(&[("odd", 5), ("a", 17 << 20)], 3);
    let mut wrong = shard.to_vec();
    wrong[9_000_000] ^= 1;
    for kind in ["sha256", "md5", "git", "crc32c", "none"] {
        let fixture = Fixture::new().await;
        fixture.origin.put_with_checksums("model/a.safetensors", shard.clone(), checksums_of(kind, &shard));
        let completed = soon(fixture.prefetch(Layout::Aligned)).await.unwrap();
        assert_holds(&completed.snapshot.directory.unwrap(), &[("a.safetensors", shard.clone())]);
        if kind != "none" {
            fixture.origin.put_with_checksums(
                "model/a.safetensors",
                shard.clone(),
                checksums_of(kind, &wrong),
            );
            let error = soon(fixture.prefetch(Layout::Aligned)).await.unwrap_err();
            assert!(matches!(error, FetchError::Corrupt { .. }), "{kind}: {error}");
            assert!(error.to_string().contains(&format!("{MODEL}/a.safetensors")), "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_equal_sha256_joins_objects_of_different_sources() {
    let fixture = Fixture::new().await;
    let bytes = Bytes::from(vec![7; 1 << 20]);
    for (kind, twice) in [("sha256", 1), ("crc32c", 2)] {
        for model in ["x", "y"] {
            fixture.origin.put_with_checksums(
                &format!("{kind}-{model}/w.bin"),
                bytes.clone(),
                checksums_of(kind, &bytes),
            );
        }
        let before = fixture.origin.bytes_served();
        for model in ["x", "y"] {
            soon(fixture.start(&format!("memory://origin/{kind}-{model}"), 0).await.wait()).await.unwrap();
        }
        assert_eq!(fixture.origin.bytes_served() - before, twice << 20, "{kind}");
    }
}

async fn refused(objects: &[(&str, Bytes)]) -> String {
    let fixture = Fixture::new().await;
    for (name, bytes) in objects {
        fixture.origin.put(&format!("model/{name}"), bytes.clone());
    }
    let error = soon(fixture.prefetch(Layout::Aligned)).await.unwrap_err();
    assert!(!error.is_retryable(), "{error}");
    assert!(!fixture.store().find(MODEL).unwrap().complete);
    error.to_string()
}

fn header(json: &str, data: usize) -> Bytes {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes.extend(vec![1; data]);
    bytes.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_safetensors_are_named_with_what_is_wrong() {
    let mut huge = (1_u64 << 63).to_le_bytes().to_vec();
    huge.extend(vec![0; 1000]);
    let overlapping = r#"{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[8],"data_offsets":[4,12]}}"#;
    let outside = r#"{"a":{"dtype":"U8","shape":[8],"data_offsets":[100,108]}}"#;
    let whole = safetensors(&[("a", 9 << 20)], 1);
    let cases = [
        (Bytes::from(huge), "claims a safetensors header of 9223372036854775808 bytes"),
        (header(overlapping, 12), "invalid safetensors header"),
        (header(outside, 8), "invalid safetensors header"),
        (header("not json", 8), "invalid safetensors header"),
        (whole.slice(..whole.len() - 1), "it is truncated"),
        (whole.slice(..40), "truncated"),
        (Bytes::from_static(b"abc"), "too few"),
        (Bytes::new(), "0 bytes"),
    ];
    for (bytes, why) in cases {
        let text = refused(&[("bad.safetensors", bytes)]).await;
        assert!(text.starts_with(&format!("{MODEL}/bad.safetensors: ")) && text.contains(why), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_held_to_its_shards_unless_they_are_left_out() {
    let shard = safetensors(&[("a", 64)], 1);
    let index = |map: &str| Bytes::from(format!(r#"{{"weight_map":{{{map}}}}}"#));
    let missing = index(r#""a":"1.safetensors","b":"2.safetensors""#);
    let text =
        refused(&[("model.safetensors.index.json", missing.clone()), ("1.safetensors", shard.clone())]).await;
    assert!(
        text.contains(&format!("{MODEL}/model.safetensors.index.json")) && text.contains("2.safetensors"),
        "{text}"
    );
    let lacking = index(r#""a":"1.safetensors","c":"1.safetensors""#);
    let text = refused(&[("model.safetensors.index.json", lacking), ("1.safetensors", shard.clone())]).await;
    assert!(text.contains("\"c\"") && text.contains("1.safetensors"), "{text}");

    let fixture = Fixture::new().await;
    for (name, bytes) in [
        ("model.safetensors.index.json", missing),
        ("1.safetensors", shard.clone()),
        ("2.safetensors", shard),
    ] {
        fixture.origin.put(&format!("model/{name}"), bytes);
    }
    let selection = Selection { include: vec![], exclude: vec!["2.*".to_owned()] };
    let resolution = fixture.fetcher.resolve(&MODEL.parse::<SourceUri>().unwrap(), &selection).await.unwrap();
    soon(fixture.fetcher.prefetch(resolution, Layout::Aligned, 0).wait()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_too_long_for_memory_is_refused_before_it_is_fetched() {
    let fixture = Fixture::new().await;
    let length = usize::try_from(WeightIndex::MAX_BYTES).unwrap() + 1;
    fixture.origin.put("model/model.safetensors.index.json", Bytes::from(vec![b' '; length]));
    fixture.origin.put("model/config.json", Bytes::from_static(b"{}"));
    let text = soon(fixture.prefetch(Layout::Aligned)).await.unwrap_err().to_string();
    for word in [&format!("{MODEL}/model.safetensors.index.json"), "64.00 MiB", "--exclude"] {
        assert!(text.contains(word), "no {word} in {text}");
    }
    assert_eq!(fixture.origin.bytes_served(), 0);
    let selection = Selection { include: vec![], exclude: vec!["*.index.json".to_owned()] };
    let resolution = fixture.fetcher.resolve(&MODEL.parse::<SourceUri>().unwrap(), &selection).await.unwrap();
    soon(fixture.fetcher.prefetch(resolution, Layout::Aligned, 0).wait()).await.unwrap();
}

/// Many tensors, as fp8 models have them: a scale of odd length before every weight.
fn scaled(count: usize, weight: usize) -> Bytes {
    let names: Vec<_> = (0..count).flat_map(|at| [format!("s{at:06}"), format!("w{at:06}")]).collect();
    let tensors: Vec<_> =
        names.iter().map(|name| (name.as_str(), if name.starts_with('s') { 4 } else { weight })).collect();
    safetensors(&tensors, count)
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_of_every_length_arrive_in_both_layouts() {
    // 16 KiB; more than is asked for at first; more than a chunk, so that literal bytes span chunks.
    for (count, weight) in [(100, 1 << 16), (2_000, 6_400), (65_000, 128)] {
        let bytes = scaled(count, weight);
        let fixture = Fixture::new().await;
        fixture.origin.put("model/a.safetensors", bytes.clone());
        let completed = soon(fixture.prefetch(Layout::Aligned)).await.unwrap();
        let directory = completed.snapshot.directory.unwrap();
        let stored = std::fs::read(directory.join("a.safetensors")).unwrap();
        let header = 8 + u64::from_le_bytes(stored[..8].try_into().unwrap());
        assert!(header.is_multiple_of(64 << 10) && (count < 65_000 || header > 8 << 20), "{header}");
        assert_holds(&directory, &[("a.safetensors", bytes.clone())]);
        let original = soon(fixture.prefetch(Layout::Original)).await.unwrap();
        let stored = std::fs::read(original.snapshot.directory.unwrap().join("a.safetensors")).unwrap();
        assert!(stored == bytes, "{count}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fewest_buffers_are_enough_for_any_model() {
    let (directory, origin) = (tempfile::tempdir().unwrap(), MemoryOrigin::new("origin"));
    let objects = put_model(&origin);
    let sums = checksums_of("sha256", &objects[2].1);
    origin.put_with_checksums("model/2.safetensors", objects[2].1.clone(), sums);
    let store = open_with(directory.path(), 0).await;
    assert_eq!(store.pool().count(), 2);
    let fetcher = Fetcher::start(store, std::sync::Arc::new(origin.clone()), Config::default());
    let fixture = Fixture { origin, fetcher, directory };
    let completed = soon(fixture.prefetch(Layout::Aligned)).await.unwrap();
    assert_holds(&completed.snapshot.directory.unwrap(), &objects);
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_tiny_objects_arrive() {
    let fixture = Fixture::new().await;
    for at in 0..3000 {
        fixture.origin.put(&format!("model/d{}/f{at}", at % 7), format!("file {at}"));
    }
    let completed = soon(fixture.prefetch(Layout::Aligned)).await.unwrap();
    let directory = completed.snapshot.directory.unwrap();
    for at in 0..3000 {
        assert_eq!(
            std::fs::read(directory.join(format!("d{}/f{at}", at % 7))).unwrap(),
            format!("file {at}").as_bytes()
        );
    }
}
