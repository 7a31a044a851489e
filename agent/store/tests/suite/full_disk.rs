//! A disk that runs out of room, and gets some back.

use std::io::ErrorKind;

use weightd_harness::SmallDisk;
use weightd_store::StoreError;

use crate::common::{assert_whole, bring, config, in_memory, on_disk, open, open_losing, plain, snapshot};

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_costs_nothing_whole_and_the_next_run_completes() {
    let directory = on_disk();
    let Some(disk) = SmallDisk::mount(directory.path(), 64 << 20) else { return };
    let store = open(&config(disk.path()));
    let (old, new) = (plain("old", 9 << 20), plain("new", 20 << 20));
    let key = bring(&store, &[&old]).await.unwrap().key();
    store.set_pinned(key, true).await.unwrap();
    // Someone else's file takes the rest, after room was promised.
    let promise = store.reserve(20 << 20).await.unwrap();
    let filler = disk.path().join("filler");
    std::fs::write(&filler, vec![1; 64 << 20]).unwrap_err();
    let error = new.store_within(&store, &promise).await.unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert!(error.to_string().contains("20.00 MiB needed"), "{error}");
    drop(promise);
    let error = bring(&store, &[&new]).await.unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert_whole(&store, &[&old], "full").await;
    std::fs::remove_file(&filler).unwrap();
    bring(&store, &[&new]).await.unwrap();
    assert_whole(&store, &[&new], "after room was made").await;
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_index_recovers_from_a_full_disk_without_a_restart() {
    let directory = in_memory();
    let (engine, store) = open_losing(&config(directory.path()));
    let store = store.unwrap();
    let (old, new) = (plain("old", 100), plain("new", 9 << 20));
    let key = bring(&store, &[&old]).await.unwrap().key();
    for left in [0, 100, 4096, 9000, 20_000] {
        engine.fail_writes_with(ErrorKind::StorageFull, left);
        let mut refused = None;
        for turn in 0..200 {
            if let Err(error) = store.set_pinned(key, turn % 2 == 0).await {
                refused = Some(error);
                break;
            }
        }
        let error = refused.expect("the disk is full");
        assert!(matches!(error, StoreError::Full { .. }), "{left}: {error}");
        engine.heal();
        store.set_pinned(key, true).await.unwrap();
        assert!(store.snapshot(&key).unwrap().pinned);
    }
    bring(&store, &[&new]).await.unwrap();
    assert_whole(&store, &[&new], "healed").await;
    assert_whole(&store, &[&old], "healed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_fails_leaves_what_was_recorded() {
    let directory = in_memory();
    let config = config(directory.path());
    let (engine, store) = open_losing(&config);
    let store = store.unwrap();
    let thing = plain("a", 20 << 20);
    let hold = store.expect(snapshot(&[&thing])).await.unwrap();
    let promise = store.reserve(0).await.unwrap();
    let partial = store.begin(thing.wanted.clone(), &promise).await.unwrap();
    thing.write(&store, &partial, 0).await.unwrap();
    engine.fail_writes_with(ErrorKind::StorageFull, 0);
    let error = thing.write(&store, &partial, 1).await.unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert!(store.checkpoint().await.is_err(), "the index could not grow");
    engine.heal();
    // The chunk that could not be recorded is not forgotten.
    store.checkpoint().await.unwrap();
    drop((partial, promise, hold, store));
    engine.power_cut(1).unwrap();
    let (_engine, store) = open_losing(&config);
    let store = store.unwrap();
    let partial = store.begin(thing.wanted.clone(), &store.reserve(0).await.unwrap()).await.unwrap();
    assert!(partial.has_chunk(0) && !partial.has_chunk(1));
}
