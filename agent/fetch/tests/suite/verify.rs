//! Rot on the disk: found, repaired from the origin, or no longer called complete.

use std::{
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use weightd_fetch::{BadChunk, VerifyEvent, VerifySummary};
use weightd_source::{Fault, Faults, Rule};
use weightd_types::Layout;

use crate::common::{Fixture, MODEL, assert_holds, hasty, put_model, soon};

pub(crate) async fn verify(fixture: &Fixture, repair: bool) -> (VerifySummary, Vec<BadChunk>) {
    let mut events = fixture.fetcher.verify(None, repair).unwrap();
    let (mut bad, mut summary) = (Vec::new(), None);
    while let Some(event) = soon(events.recv()).await {
        match event.unwrap() {
            VerifyEvent::Progress { .. } => {}
            VerifyEvent::Bad(found) => bad.push(found),
            VerifyEvent::Summary(found) => summary = Some(found),
        }
    }
    (summary.expect("a verification ends with a summary"), bad)
}

/// Changes one byte without changing the file's times or inode in any way that matters.
pub(crate) fn flip(path: &Path, at: u64) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

async fn fetched() -> (Fixture, Vec<(&'static str, Bytes)>, PathBuf) {
    let fixture = Fixture::new().await;
    let objects = put_model(&fixture.origin);
    let directory = fixture.prefetch(Layout::Aligned).await.unwrap().snapshot.directory.unwrap();
    (fixture, objects, directory)
}

pub(crate) fn blob_path(fixture: &Fixture, name: &str, ending: &str) -> PathBuf {
    let record = fixture.store().find(MODEL).unwrap();
    let entry = record.manifest.objects.iter().find(|entry| entry.object.path.as_str() == name).unwrap();
    let id = entry.blob.id.to_string();
    fixture.directory.path().join("store/blobs").join(&id[..2]).join(format!("{}{ending}", entry.blob))
}

#[tokio::test(flavor = "multi_thread")]
async fn flipped_bytes_are_found_and_repaired_in_place() {
    let (fixture, objects, directory) = fetched().await;
    let (summary, bad) = verify(&fixture, true).await;
    assert!(bad.is_empty() && summary.checked_blobs == 6, "{summary:?}");
    let file = directory.join("1.safetensors");
    let inode = std::fs::metadata(&file).unwrap().ino();
    for at in [10, 9_000_000] {
        flip(&file, at);
    }
    let before = fixture.origin.bytes_served();
    let (summary, bad) = verify(&fixture, true).await;
    assert_eq!((summary.bad_chunks, summary.repaired_chunks), (2, 2), "{bad:?}");
    assert!(bad.iter().all(|bad| bad.path == "1.safetensors" && bad.repaired));
    assert!(fixture.origin.bytes_served() - before <= 16 << 20, "only bad chunks are fetched");
    assert_holds(&directory, &objects);
    assert_eq!(std::fs::metadata(&file).unwrap().ino(), inode);
    assert!(verify(&fixture, false).await.1.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_someone_has_mended_is_not_fetched_again() {
    let (fixture, objects, directory) = fetched().await;
    flip(&directory.join("1.safetensors"), 9_000_000);
    let record = fixture.store().find(MODEL).unwrap();
    let mut entries = record.manifest.objects.iter();
    let blob = entries.find(|entry| entry.object.path.as_str() == "1.safetensors").unwrap().blob;
    let mut served = vec![fixture.origin.bytes_served()];
    for _ in 0..2 {
        fixture.fetcher.repair_chunk(record.key(), blob, 1).await.unwrap();
        served.push(fixture.origin.bytes_served());
    }
    assert!(served[0] < served[1] && served[1] == served[2], "{served:?}");
    assert_holds(&directory, &objects);
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_files_and_damaged_descriptions_are_brought_back() {
    let damages: [(&str, fn(&Path)); 5] = [
        ("", |path| std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(9 << 20).unwrap()),
        ("", |path| std::fs::remove_file(path).unwrap()),
        (".json", |path| flip(path, 100)),
        (".json", |path| std::fs::remove_file(path).unwrap()),
        (".header", |path| flip(path, 20)),
    ];
    for (at, (ending, damage)) in damages.into_iter().enumerate() {
        let (fixture, objects, _) = fetched().await;
        damage(&blob_path(&fixture, "1.safetensors", ending));
        let (summary, bad) = verify(&fixture, true).await;
        assert!(
            summary.bad_chunks > 0 && summary.bad_chunks == summary.repaired_chunks,
            "damage {at}: {bad:?}"
        );
        let record = fixture.store().find(MODEL).unwrap();
        assert!(record.complete, "damage {at}");
        assert_holds(&record.directory.unwrap(), &objects);
        assert!(verify(&fixture, false).await.1.is_empty(), "damage {at}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_its_blob_is_found_and_replaced() {
    let (fixture, objects, directory) = fetched().await;
    let file = directory.join("config.json");
    let seal = |mode| std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(mode)).unwrap();
    seal(0o755);
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, "[]").unwrap();
    seal(0o555);
    let (summary, bad) = verify(&fixture, false).await;
    assert_eq!((summary.bad_chunks, summary.repaired_chunks, bad.len()), (1, 0, 1), "{bad:?}");
    assert_eq!(bad[0].path, "config.json");
    assert!(!fixture.store().find(MODEL).unwrap().complete);
    let (summary, bad) = verify(&fixture, true).await;
    assert_eq!((summary.bad_chunks, summary.repaired_chunks), (1, 1), "{bad:?}");
    assert_holds(&directory, &objects);
    assert!(verify(&fixture, false).await.1.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_origin_damage_is_reported_and_nothing_called_complete() {
    for ending in ["", ".json"] {
        let (fixture, objects, directory) = fetched().await;
        if ending.is_empty() {
            flip(&directory.join("2.safetensors"), 9_000_000);
        } else {
            flip(&blob_path(&fixture, "2.safetensors", ending), 100);
        }
        for (name, _) in &objects {
            fixture.origin.remove(&format!("model/{name}"));
        }
        let (summary, bad) = verify(&fixture, true).await;
        assert_eq!((summary.bad_chunks, summary.repaired_chunks, summary.checked_blobs), (1, 0, 6));
        let failure = bad[0].failure.as_deref().unwrap();
        assert!(!bad[0].repaired && failure.contains(&format!("{MODEL}/2.safetensors")), "{bad:?}");
        assert!(!fixture.store().find(MODEL).unwrap().complete);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_found_bad_is_fetched_by_the_next_prefetch_and_nothing_else() {
    let (fixture, objects, directory) = fetched().await;
    flip(&directory.join("2.safetensors"), 9_000_000);
    let (summary, bad) = verify(&fixture, false).await;
    assert_eq!((summary.bad_chunks, summary.repaired_chunks), (1, 0), "{bad:?}");
    assert!(!fixture.store().find(MODEL).unwrap().complete);
    let before = fixture.origin.bytes_served();
    let completed = soon(fixture.prefetch(Layout::Aligned)).await.unwrap();
    let fetched = fixture.origin.bytes_served() - before;
    assert!(fetched <= (8 << 20) + (256 << 10), "{fetched} bytes for one chunk");
    assert_holds(&completed.snapshot.directory.unwrap(), &objects);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_still_on_its_way_is_not_bad() {
    let faults = Faults::new(1).with(Rule::reads(Fault::Unauthenticated).of("2.safetensors").skip(1));
    let fixture = Fixture::faulty(&faults, hasty()).await;
    put_model(&fixture.origin);
    soon(fixture.prefetch(Layout::Aligned)).await.unwrap_err();
    let record = fixture.store().find(MODEL).unwrap();
    // What else was on its way may be stored a moment after the failure.
    let stored = || fixture.store().stored(record.manifest.clone());
    let before = stored().await.unwrap().len() as u64;
    let (summary, bad) = verify(&fixture, true).await;
    assert!(bad.is_empty(), "{bad:?}");
    let after = stored().await.unwrap().len() as u64;
    assert!((before..=after).contains(&summary.checked_blobs), "{before} to {after}: {summary:?}");
    assert!(before > 0, "the index came before the shard that cannot");
    assert!(!fixture.store().find(MODEL).unwrap().complete);
}
