//! From an origin in memory into a real store: what a prefetch brings, and what it does not ask for twice.

use std::{os::unix::fs::FileExt, time::Duration};

use weightd_types::Layout;

use crate::common::{Fixture, MODEL, assert_holds, put_model, soon, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_model_arrives_whole_and_a_second_prefetch_reads_nothing() {
    let fixture = Fixture::new().await;
    let objects = put_model(&fixture.origin);
    let completed = fixture.prefetch(Layout::Aligned).await.unwrap();
    let directory = completed.snapshot.directory.clone().unwrap();
    assert_holds(&directory, &objects);
    assert!(directory.join(".weightd.sock").exists());
    assert_eq!(completed.reused_bytes, 0);

    let (lists, reads) = (fixture.origin.list_calls(), fixture.origin.read_calls());
    let again = fixture.prefetch(Layout::Aligned).await.unwrap();
    assert_eq!(again.fetched_bytes, 0);
    assert_eq!(fixture.origin.list_calls(), lists + 1);
    assert_eq!(fixture.origin.read_calls(), reads);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_layout_is_made_locally() {
    let fixture = Fixture::new().await;
    let objects = put_model(&fixture.origin);
    fixture.prefetch(Layout::Aligned).await.unwrap();
    let served = fixture.origin.bytes_served();
    let original = fixture.prefetch(Layout::Original).await.unwrap();
    let directory = original.snapshot.directory.unwrap();
    for (name, bytes) in &objects {
        assert!(std::fs::read(directory.join(name)).unwrap() == bytes.as_ref(), "{name} differs");
    }
    // Headers are asked for again; data is not.
    assert!(fixture.origin.bytes_served() - served < 1 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_made_of_another_layout_that_rotted() {
    let fixture = Fixture::new().await;
    let objects = put_model(&fixture.origin);
    let aligned = fixture.prefetch(Layout::Aligned).await.unwrap().snapshot.directory.unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(aligned.join("1.safetensors")).unwrap();
    file.write_all_at(b"rotten", 9_000_000).unwrap();
    let original = soon(fixture.prefetch(Layout::Original)).await.unwrap().snapshot.directory.unwrap();
    for (name, bytes) in &objects {
        assert!(std::fs::read(original.join(name)).unwrap() == bytes.as_ref(), "{name} differs");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_free_buffer_nothing_is_taken_from_the_origin() {
    let fixture = Fixture::new().await;
    fixture.origin.put("model/weights.bin", vec![3; 40 << 20]);
    let pool = fixture.store().pool().clone();
    let held: Vec<_> = std::iter::from_fn(|| pool.try_acquire()).collect();
    let transfer = fixture.start(MODEL, 0).await;
    let waiting = tokio::spawn(async move { transfer.wait().await });
    until(|| fixture.fetcher.requests_in_flight() > 0).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(fixture.origin.bytes_served(), 0, "chunks have no other place");
    drop(held);
    soon(waiting).await.unwrap().unwrap();
    until(|| pool.in_use() == 0).await;
}
