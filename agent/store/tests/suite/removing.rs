//! Removals that something gets in the way of, and what they leave.

use std::sync::Arc;

use weightd_store::{Config, Store, StoreError};

use crate::common::{Thing, assert_whole, bring, config, in_memory, open, open_losing, plain, snapshot};

/// Puts something in a removal's way; what it gives takes that away again.
type Obstacle = fn(&Store, &Arc<Thing>) -> Box<dyn FnOnce()>;

/// A file in the place of a snapshot's directory.
fn file_for_directory(store: &Store, thing: &Arc<Thing>) -> Box<dyn FnOnce()> {
    let directory = store.snapshot(&snapshot(&[thing]).key()).unwrap().directory.unwrap();
    std::fs::rename(&directory, directory.with_extension("moved")).unwrap();
    std::fs::write(&directory, "mine").unwrap();
    Box::new(move || {
        std::fs::remove_file(&directory).unwrap();
        std::fs::rename(directory.with_extension("moved"), &directory).unwrap();
    })
}

/// A directory with something in it in the place of a blob.
fn directory_for_blob(store: &Store, thing: &Arc<Thing>) -> Box<dyn FnOnce()> {
    let blob = store.blob_path(&thing.key());
    std::fs::remove_file(&blob).unwrap();
    std::fs::create_dir_all(blob.join("mine")).unwrap();
    Box::new(move || std::fs::remove_dir_all(&blob).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_failed_half_way_can_be_repeated_to_its_end() {
    for obstacle in [file_for_directory as Obstacle, directory_for_blob] {
        let directory = in_memory();
        let config = config(directory.path());
        let store = open(&config);
        let thing = plain("a", 1 << 20);
        let key = bring(&store, &[&thing]).await.unwrap().key();
        let directory = store.snapshot(&key).unwrap().directory.unwrap();
        let take_away = obstacle(&store, &thing);
        store.remove("memory://m/model", false).await.unwrap_err();
        let record = store.snapshot(&key).expect("it can be named again");
        assert!(!record.complete, "its manifest is gone");
        take_away();
        store.remove("memory://m/model", false).await.unwrap();
        assert!(store.snapshots().is_empty() && !directory.exists());
        assert!(!store.blob_path(&thing.key()).exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_whose_removal_failed_is_written_down_when_it_is_wanted_again() {
    let directory = in_memory();
    let config = config(directory.path());
    let store = open(&config);
    let thing = plain("a", 1 << 20);
    let key = bring(&store, &[&thing]).await.unwrap().key();
    let take_away = directory_for_blob(&store, &thing);
    store.remove("memory://m/model", false).await.unwrap_err();
    drop(store.expect(snapshot(&[&thing])).await.unwrap());
    store.close().await.unwrap();
    take_away();
    let store = open(&config);
    assert!(store.snapshot(&key).is_some_and(|record| !record.complete));
    bring(&store, &[&thing]).await.unwrap();
    assert_whole(&store, &[&thing], "brought again").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_finds_the_disk_full_can_be_repeated() {
    let directory = in_memory();
    let (engine, store) = open_losing(&config(directory.path()));
    let store = store.unwrap();
    let thing = plain("a", 1 << 20);
    let key = bring(&store, &[&thing]).await.unwrap().key();
    let directory = store.snapshot(&key).unwrap().directory.unwrap();
    // The index cannot forget it.
    engine.fail_writes_with(std::io::ErrorKind::StorageFull, 0);
    let error = store.remove(&key.to_string(), false).await.unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    engine.heal();
    let removed = store.remove(&key.to_string(), false).await.unwrap();
    assert_eq!((removed.snapshots, removed.freed_bytes), (vec![key], 1 << 20));
    assert!(!directory.exists() && !store.blob_path(&thing.key()).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_of_snapshots_that_nothing_names_are_garbage_and_no_others() {
    let directory = in_memory();
    let store = open(&config(directory.path()));
    let (gone, whole, lacking) = (plain("gone", 10), plain("whole", 20), plain("lacking", 30));
    let mut directories = Vec::new();
    for thing in [&gone, &whole, &lacking] {
        let key = bring(&store, &[thing]).await.unwrap().key();
        directories.push(store.snapshot(&key).unwrap().directory.unwrap());
    }
    store.mark_missing(lacking.key()).await.unwrap();
    store.remove(&snapshot(&[&gone]).key().to_string(), false).await.unwrap();
    let (left, theirs) = (&directories[0], directories[0].with_file_name("notes"));
    std::fs::create_dir_all(left.join("sub")).unwrap();
    std::fs::write(left.join("sub/gone"), &gone.blob).unwrap();
    std::fs::create_dir(&theirs).unwrap();
    store.collect_garbage(false).await.unwrap();
    assert!(!left.exists(), "it would keep its room until the next start");
    assert!(directories[1].exists() && theirs.exists());
    assert!(directories[2].exists(), "one that lost a blob may be mounted");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_removed_keeps_nothing_else_from_going() {
    let directory = in_memory();
    let store = open(&Config { quota_bytes: Some(3 << 20), ..config(directory.path()) });
    let (first, second) = (plain("first", 1 << 20), plain("second", 1 << 20));
    let [stuck, other] = [&first, &second].map(|thing| snapshot(&[thing]).key());
    for thing in [&first, &second] {
        bring(&store, &[thing]).await.unwrap();
    }
    let take_away = file_for_directory(&store, &first);
    let error = store.reserve(3 << 20).await.unwrap_err();
    assert!(error.to_string().contains(&stuck.to_string()), "it says what is in the way: {error}");
    assert!(store.snapshot(&stuck).is_some() && store.snapshot(&other).is_none());
    store.reserve(2 << 20).await.expect("the other one made room");
    store.collect_garbage(true).await.unwrap();
    assert!(store.snapshot(&stuck).is_some() && store.blob_path(&first.key()).exists());
    take_away();
    store.reserve(3 << 20).await.unwrap();
    assert!(store.snapshots().is_empty());
}
