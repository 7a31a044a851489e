//! Each call, and what it answers to requests that cannot be served.

use weightd_client::Client;
use weightd_proto::v1::{
    CollectGarbageRequest, FailureKind, GetRequest, Layout, PinRequest, RemoveRequest, ResolveRequest,
    Selection, SnapshotState, UnpinRequest, VerifyRequest, prefetch_event::Event, verify_event,
};

use crate::harness::{SMALL_FILE, client, config, model, next, prefetch, request, start};

const MODEL: &str = "memory://m/model";
const BYTES: usize = 9 << 20;
const SIZE: u64 = (9 << 20) + SMALL_FILE;

fn named(snapshot: &str) -> GetRequest {
    GetRequest { snapshot: snapshot.to_owned(), summary: false }
}

#[tokio::test]
async fn a_prefetch_says_what_it_brings_then_how_it_goes_then_what_it_brought() {
    let directory = tempfile::tempdir().unwrap();
    let agent = start(config(directory.path(), ""), &model(BYTES)).await;
    let client = client(&agent);
    let mut events = client.prefetch(request(MODEL)).await.unwrap();
    let Event::Resolved(resolved) = next(&mut events).await.unwrap() else { panic!("resolved comes first") };
    assert_eq!((resolved.object_count, resolved.total_bytes, resolved.missing_bytes), (2, SIZE, SIZE));
    let mut verified = Vec::new();
    let completed = loop {
        match next(&mut events).await.unwrap() {
            Event::Progress(progress) => {
                assert_eq!(progress.total_bytes, SIZE);
                verified
                    .extend(progress.files.into_iter().filter(|file| file.verified).map(|file| file.path));
            }
            Event::Completed(completed) => break completed,
            other => panic!("{other:?} in the middle"),
        }
    };
    verified.sort();
    assert_eq!(verified, ["config.json", "tokenizer.bin"]);
    assert_eq!((completed.fetched_bytes, completed.reused_bytes), (SIZE, 0));
    let snapshot = completed.snapshot.unwrap();
    assert_eq!(snapshot.state(), SnapshotState::Complete);
    assert_eq!(snapshot.layout(), Layout::Aligned);
    let here = std::path::Path::new(&snapshot.directory).join("tokenizer.bin");
    assert_eq!(std::fs::read(here).unwrap(), vec![7; BYTES]);
    agent.shutdown().await;
}

#[tokio::test]
async fn what_is_complete_costs_one_listing_and_no_read() {
    let directory = tempfile::tempdir().unwrap();
    let origin = model(BYTES);
    let agent = start(config(directory.path(), ""), &origin).await;
    let client = client(&agent);
    prefetch(&client, request(MODEL)).await.unwrap();
    let (lists, reads) = (origin.list_calls(), origin.read_calls());
    let again = prefetch(&client, request(MODEL)).await.unwrap();
    assert_eq!((again.fetched_bytes, again.reused_bytes), (0, SIZE));
    assert_eq!((origin.list_calls() - lists, origin.read_calls() - reads), (1, 0));
    agent.shutdown().await;
}

#[tokio::test]
async fn resolve_divides_by_the_selection_and_fetches_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let origin = model(BYTES);
    let agent = start(config(directory.path(), ""), &origin).await;
    let selection = Some(Selection { include: vec!["*.json".to_owned()], exclude: vec![] });
    let request = ResolveRequest { source: MODEL.to_owned(), selection, layout: Layout::Unspecified.into() };
    let answer = client(&agent).resolve(request).await.unwrap();
    assert_eq!(answer.objects.len(), 1);
    assert_eq!(answer.left_out.len(), 1);
    assert_eq!((answer.total_bytes, answer.missing_bytes), (SMALL_FILE, SMALL_FILE));
    assert!(answer.objects[0].version.starts_with("generation "), "{}", answer.objects[0].version);
    assert_eq!(origin.read_calls(), 0);
    agent.shutdown().await;
}

#[tokio::test]
async fn snapshots_are_listed_found_pinned_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    let agent = start(config(directory.path(), ""), &model(BYTES)).await;
    let client = client(&agent);
    let pinned =
        prefetch(&client, weightd_proto::v1::PrefetchRequest { pin: true, ..request(MODEL) }).await.unwrap();
    let id = pinned.snapshot.unwrap().id;
    let listed = client.list().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert!(listed[0].pinned && listed[0].id == id);
    for name in [MODEL, id.as_str(), &id[..12], &format!("{id}.aligned")] {
        let found = client.get(named(name)).await.unwrap();
        assert_eq!(found.snapshot.unwrap().id, id, "{name}");
        assert!(
            found.objects.iter().all(|object| object.verified && object.present_bytes == object.size_bytes)
        );
    }
    let summary = client.get(GetRequest { summary: true, ..named(MODEL) }).await.unwrap();
    assert!(summary.objects.is_empty());

    let remove = |force| RemoveRequest { snapshot: MODEL.to_owned(), force, allow_missing: false };
    let error = client.remove(remove(false)).await.unwrap_err();
    assert_eq!(error.kind(), FailureKind::NotPermitted, "{error}");
    let unpinned = client.unpin(UnpinRequest { snapshot: id.clone() }).await.unwrap();
    assert!(!unpinned.snapshot.unwrap().pinned);
    let removed = client.remove(remove(false)).await.unwrap();
    assert_eq!(removed.snapshot_ids, [format!("{id}.aligned")]);
    assert!(removed.freed_bytes >= SIZE);
    assert!(client.list().await.unwrap().is_empty());
    let error = client.remove(remove(false)).await.unwrap_err();
    assert_eq!(error.kind(), FailureKind::NotFound, "{error}");
    let again = client.remove(RemoveRequest { allow_missing: true, ..remove(false) }).await.unwrap();
    assert!(again.snapshot_ids.is_empty(), "removing twice is removing once for whoever says so");
    let collected = client.collect_garbage(CollectGarbageRequest { partials: true }).await.unwrap();
    assert_eq!(collected.removed_blobs, 0, "removing left nothing behind");
    agent.shutdown().await;
}

#[tokio::test]
async fn verify_repairs_what_rotted_and_says_where() {
    let directory = tempfile::tempdir().unwrap();
    let agent = start(config(directory.path(), ""), &model(BYTES)).await;
    let client = client(&agent);
    let snapshot = prefetch(&client, request(MODEL)).await.unwrap().snapshot.unwrap();
    let file = std::path::Path::new(&snapshot.directory).join("tokenizer.bin");
    rot(&file);
    let (bad, summary) = verify(&client, "", false).await;
    assert_eq!((bad.len(), summary.bad_chunks, summary.repaired_chunks), (1, 1, 0));
    assert_eq!((bad[0].path.as_str(), bad[0].offset_bytes, bad[0].repaired), ("tokenizer.bin", 0, false));
    prefetch(&client, request(MODEL)).await.unwrap();
    let (_, summary) = verify(&client, "", true).await;
    assert_eq!(summary.bad_chunks, summary.repaired_chunks);
    let snapshot = client.get(named(MODEL)).await.unwrap().snapshot.unwrap();
    let file = std::path::Path::new(&snapshot.directory).join("tokenizer.bin");
    assert_eq!(std::fs::read(file).unwrap(), vec![7; BYTES]);
    agent.shutdown().await;
}

#[tokio::test]
async fn verify_of_a_source_checks_every_snapshot_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let origin = model(BYTES);
    let agent = start(config(directory.path(), ""), &origin).await;
    let client = client(&agent);
    let old = prefetch(&client, request(MODEL)).await.unwrap().snapshot.unwrap();
    origin.put("model/tokenizer.bin", vec![9; BYTES]);
    prefetch(&client, request(MODEL)).await.unwrap();
    rot(&std::path::Path::new(&old.directory).join("tokenizer.bin"));
    let (bad, summary) = verify(&client, MODEL, false).await;
    assert_eq!((bad.len(), summary.bad_chunks), (1, 1), "the older snapshot is read as well");
    assert!(summary.checked_bytes > 2 * BYTES as u64 - (8 << 20), "{summary:?}");
    agent.shutdown().await;
}

/// Flips a byte behind the store's back.
fn rot(file: &std::path::Path) {
    use std::os::unix::fs::{FileExt, PermissionsExt};
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::File::options().write(true).open(file).unwrap().write_all_at(&[8], 1000).unwrap();
}

async fn verify(
    client: &Client,
    snapshot: &str,
    repair: bool,
) -> (Vec<weightd_proto::v1::BadChunk>, weightd_proto::v1::VerifySummary) {
    let mut events = client.verify(VerifyRequest { snapshot: snapshot.to_owned(), repair }).await.unwrap();
    let mut bad = Vec::new();
    loop {
        match events.next().await.unwrap().expect("a summary comes last").event.unwrap() {
            verify_event::Event::Progress(_) => {}
            verify_event::Event::Bad(chunk) => bad.push(chunk),
            verify_event::Event::Summary(summary) => {
                assert!(events.next().await.unwrap().is_none());
                return (bad, summary);
            }
        }
    }
}

#[tokio::test]
async fn requests_that_cannot_be_served_say_why() {
    let directory = tempfile::tempdir().unwrap();
    let origin = model(10);
    let wrong = weightd_types::Checksums { crc32c: Some(weightd_types::Crc32c(1)), ..Default::default() };
    origin.put_with_checksums("rotten/file", "bytes", wrong);
    let agent = start(config(directory.path(), "[fetch]\nrefetches = 0"), &origin).await;
    let client = client(&agent);
    for (source, kind, said) in [
        ("model", FailureKind::Usage, "begin with one of"),
        ("memory://m/nothing", FailureKind::NotFound, "memory://m/nothing"),
        ("memory://other/x", FailureKind::Usage, "memory://other/x"),
        ("memory://m/rotten", FailureKind::Corrupt, "memory://m/rotten/file"),
    ] {
        let error = prefetch(&client, request(source)).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{source}: {error}");
        assert!(error.to_string().contains(said), "{source}: {error}");
    }
    let globs = Some(Selection { include: vec!["[".to_owned()], exclude: vec![] });
    let error =
        prefetch(&client, weightd_proto::v1::PrefetchRequest { selection: globs, ..request(MODEL) }).await;
    assert_eq!(error.unwrap_err().kind(), FailureKind::Usage);
    let missing = |error: weightd_client::Error| assert_eq!(error.kind(), FailureKind::NotFound, "{error}");
    missing(client.get(named("memory://m/gone")).await.unwrap_err());
    missing(client.pin(PinRequest { snapshot: "abcdef".to_owned() }).await.unwrap_err());
    missing(client.verify(VerifyRequest { snapshot: "abcdef".to_owned(), repair: true }).await.unwrap_err());
    agent.shutdown().await;
}
