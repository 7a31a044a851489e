//! Whose directory it is, and what opening makes of damage.

use std::sync::Arc;

use weightd_harness::SmallDisk;
use weightd_store::{Store, StoreError};

use crate::common::{
    TWO_CHUNKS, aligned, assert_sound, assert_whole, bring, config, on_disk, open, plain, snapshot,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_new_store_opens_again_with_what_it_held() {
    let directory = on_disk();
    let config = config(directory.path());
    let things = [&plain("a", 100), &aligned("b.safetensors", 300)];
    let store = open(&config);
    let manifest = bring(&store, &things).await.unwrap();
    store.set_pinned(manifest.key(), true).await.unwrap();
    store.close().await.unwrap();
    assert!(matches!(store.set_pinned(manifest.key(), false).await, Err(StoreError::Closed)));
    let store = Store::open(config).unwrap();
    assert_whole(&store, &things, "reopened").await;
    assert!(store.find("memory://m/model").unwrap().pinned);
}

#[test]
fn other_directories_are_refused_and_left_alone() {
    let directory = on_disk();
    let config = config(directory.path());
    std::fs::create_dir(&config.directory).unwrap();
    std::fs::write(config.directory.join("thesis.txt"), "mine").unwrap();
    let error = Store::open(config.clone()).unwrap_err();
    assert!(matches!(error, StoreError::NotAStore { .. }), "{error}");
    assert!(error.to_string().contains("name an empty or new directory"), "{error}");
    assert_eq!(std::fs::read_dir(&config.directory).unwrap().count(), 1);
}

#[test]
fn newer_formats_are_refused_by_number() {
    let directory = on_disk();
    let config = config(directory.path());
    drop(open(&config));
    std::fs::write(config.directory.join("format"), "weightd-store 2\n").unwrap();
    let error = Store::open(config.clone()).unwrap_err();
    assert!(matches!(error, StoreError::NewerFormat { found: 2, .. }), "{error}");
    std::fs::write(config.directory.join("format"), "something else").unwrap();
    assert!(matches!(Store::open(config).unwrap_err(), StoreError::NotAStore { .. }));
}

#[test]
fn a_second_agent_is_told_who_has_it() {
    let directory = on_disk();
    let config = config(directory.path());
    let store = open(&config);
    let error = Store::open(config.clone()).unwrap_err();
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    drop(store);
    open(&config);
}

#[test]
fn a_read_only_disk_is_named() {
    let directory = on_disk();
    let Some(disk) = SmallDisk::mount(directory.path(), 32 << 20) else { return };
    let config = config(disk.path());
    drop(open(&config));
    for _ in 0..100 {
        // Whoever dropped the store may still be closing its files.
        if disk.make_read_only().is_ok() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let error = Store::open(config).unwrap_err();
    assert!(matches!(error, StoreError::ReadOnly { .. }), "{error}");
    let mut new = crate::common::config(disk.path());
    new.directory = disk.path().join("new");
    assert!(matches!(Store::open(new).unwrap_err(), StoreError::ReadOnly { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_store_opens_again_at_once_whoever_still_has_it() {
    let directory = on_disk();
    let config = config(directory.path());
    let thing = plain("a", TWO_CHUNKS);
    let mut kept = Vec::new();
    for turn in 0..5 {
        let store = Store::open(config.clone()).unwrap_or_else(|error| panic!("turn {turn}: {error}"));
        let hold = store.expect(snapshot(&[&thing])).await.unwrap();
        let promise = store.reserve(0).await.unwrap();
        let partial = store.begin(thing.wanted.clone(), &promise).await.unwrap();
        // Begun, and given up by those who wanted it.
        let recording = tokio::spawn({
            let store = store.clone();
            async move { store.checkpoint().await }
        });
        for _ in 0..3 {
            tokio::select! {
                biased;
                _ = thing.write(&store, &partial, 0) => {}
                () = std::future::ready(()) => {}
            }
        }
        let (closed, again) = tokio::join!(store.close(), store.close());
        closed.and(again).unwrap();
        assert_eq!(store.pool().in_use(), 0, "a write goes on after the directory was let go");
        drop(recording.await.unwrap());
        assert!(matches!(thing.write(&store, &partial, 0).await, Err(StoreError::Closed)));
        assert!(matches!(store.finish(Arc::clone(&partial)).await, Err(StoreError::Closed)));
        kept.push((store, hold, promise, partial));
    }
    let store = Store::open(config).unwrap();
    bring(&store, &[&thing]).await.unwrap();
    drop(kept);
    assert_whole(&store, &[&thing], "with older ones gone").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_index_costs_no_complete_blob() {
    let directory = on_disk();
    let config = config(directory.path());
    let things = [&plain("a", 100), &aligned("b.safetensors", 300)];
    let store = open(&config);
    bring(&store, &things).await.unwrap();
    store.close().await.unwrap();
    drop(store);
    let index = config.directory.join("index.redb");
    let whole = std::fs::read(&index).unwrap();
    let mut random = fastrand::Rng::with_seed(5);
    for case in 0..24 {
        let mut damaged = whole.clone();
        match case {
            0 => damaged.clear(),
            1 => damaged.fill(0xa5),
            2 => damaged.truncate(whole.len() / 2),
            3 => damaged = b"not a database at all".to_vec(),
            _ => (0..1 << (case % 8))
                .for_each(|_| damaged[random.usize(..whole.len().min(64 << 10))] ^= 1 << random.u8(..8)),
        }
        std::fs::write(&index, damaged).unwrap();
        let store = open(&config);
        assert_whole(&store, &things, &format!("case {case}")).await;
        store.close().await.unwrap();
    }
    assert!(config.directory.join("index.redb.damaged").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_manifests_are_not_believed() {
    let directory = on_disk();
    let config = config(directory.path());
    let thing = plain("a", 100);
    let store = open(&config);
    let manifest = bring(&store, &[&thing]).await.unwrap();
    drop(store);
    let snapshots = config.directory.join("snapshots");
    let path = snapshots.join(format!("{}.json", manifest.key()));
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let store = open(&config);
    assert!(store.snapshot(&manifest.key()).is_none());
    // Its blob is still there: nothing needs to be fetched to bring it back.
    assert!(store.has_blob(&thing.key()));
    bring(&store, &[&thing]).await.unwrap();
    assert_whole(&store, &[&thing], "linked again").await;

    let id = thing.key().id.to_string();
    let path = config.directory.join("blobs").join(&id[..2]).join(format!("{}.json", thing.key()));
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert!(!store.has_blob(&thing.key()));
    let error = store.stored_blob(thing.key()).await.unwrap_err();
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    thing.store(&store).await.unwrap();
    assert_sound(&store, &thing, "fetched again").await;
    assert_eq!(snapshot(&[&thing]).key(), manifest.key());
}

#[test]
fn directories_named_like_ours_are_no_store() {
    for file in ["snapshots/abc/model.bin", "tmp/mydata/notes", "blobs/ab/x", "blobs"] {
        let directory = on_disk();
        let config = config(directory.path());
        let path = config.directory.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "mine").unwrap();
        let error = Store::open(config.clone()).unwrap_err();
        assert!(matches!(error, StoreError::NotAStore { .. }), "{file}: {error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
        assert!(!config.directory.join("lock").exists(), "{file}");
    }
    let directory = on_disk();
    let config = config(directory.path());
    std::fs::write(&config.directory, "mine").unwrap();
    let error = Store::open(config).unwrap_err();
    assert!(error.to_string().contains("a file, not a directory"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_the_stores_stays_and_stops_nothing() {
    let directory = on_disk();
    let config = config(directory.path());
    let thing = plain("a", 100);
    let store = open(&config);
    bring(&store, &[&thing]).await.unwrap();
    store.close().await.unwrap();
    let strange = ["snapshots/mine/x", "snapshots/x.json/x", "tmp/mine/x", "blobs/zz/d/x", "blobs/zz/note"];
    let leftover =
        [".a.json.123-0.writing", "snapshots/.a.json.00ff00ff00ff00ff-3.writing", "blobs/zz/.a.1-0.writing"];
    for name in strange.iter().chain(&leftover) {
        let path = config.directory.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "mine").unwrap();
    }
    let store = open(&config);
    store.collect_garbage(true).await.unwrap();
    assert_whole(&store, &[&thing], "among strangers").await;
    for name in strange {
        assert!(config.directory.join(name).exists(), "{name} is gone");
    }
    for name in leftover {
        assert!(!config.directory.join(name).exists(), "{name} is still there");
    }
}

#[test]
fn a_store_is_made_by_one_of_many() {
    for _ in 0..20 {
        let directory = on_disk();
        let config = config(directory.path());
        std::thread::scope(|scope| {
            let opening: Vec<_> =
                (0..5).map(|_| scope.spawn(|| Store::open(config.clone()).map(drop))).collect();
            for opened in opening {
                let outcome = opened.join().unwrap();
                assert!(matches!(outcome, Ok(()) | Err(StoreError::Locked { .. })), "{outcome:?}");
            }
        });
    }
}
