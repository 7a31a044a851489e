//! Bytes that change on the disk: found, repaired in place, or taken back to what is missing.

use std::os::unix::fs::MetadataExt;

use weightd_store::StoreError;

use crate::common::{
    TWO_CHUNKS, aligned, assert_sound, assert_whole, bring, config, on_disk, open, plain, snapshot,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_chunk_is_found_and_only_right_bytes_repair_it() {
    let directory = on_disk();
    let store = open(&config(directory.path()));
    let thing = aligned("a.safetensors", 17 << 20);
    bring(&store, &[&thing]).await.unwrap();
    let path = store.stored_blob(thing.key()).await.unwrap().unwrap().path().to_owned();
    let inode = std::fs::metadata(&path).unwrap().ino();
    for at in [0, 70_000, (8 << 20) + 1, (16 << 20) + 5, thing.blob.len() - 1] {
        let mut bytes = thing.blob.clone();
        bytes[at] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let blob = store.stored_blob(thing.key()).await.unwrap().unwrap();
        let chunk = u32::try_from(at >> 23).unwrap();
        for other in 0..blob.placement().chunk_count() {
            let (_, good) = blob.check_chunk(other, store.pool().acquire().await).await.unwrap();
            assert_eq!(good, other != chunk, "byte {at}, chunk {other}");
        }
        assert!(
            store
                .read_blob(thing.key())
                .await
                .unwrap_err()
                .to_string()
                .contains(&format!("chunk {chunk} is damaged"))
        );
        let range = blob.placement().chunk_range(chunk);
        let (start, end) = (usize::try_from(range.start).unwrap(), usize::try_from(range.end).unwrap());
        let mut wrong = store.pool().acquire().await;
        wrong.extend_from_slice(&bytes[start..end]);
        assert!(matches!(blob.repair_chunk(chunk, wrong).await, Err(StoreError::Damaged { .. })));
        let mut right = store.pool().acquire().await;
        right.extend_from_slice(&thing.blob[start..end]);
        blob.repair_chunk(chunk, right).await.unwrap();
        assert_sound(&store, &thing, &format!("byte {at}")).await;
    }
    assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode, "repaired where readers have it mapped");
    assert_whole(&store, &[&thing], "repaired").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_repaired_is_missing_and_comes_back_in_place() {
    let directory = on_disk();
    let config = config(directory.path());
    let store = open(&config);
    let thing = aligned("a.safetensors", 17 << 20);
    let key = bring(&store, &[&thing]).await.unwrap().key();
    let mounted = std::fs::File::open(store.snapshot(&key).unwrap().directory.unwrap()).unwrap();
    let blob = store.stored_blob(thing.key()).await.unwrap().unwrap();
    blob.demote(&[2]).await.unwrap();
    drop(blob);
    assert!(!store.is_complete(key).await.unwrap() && !store.has_blob(&thing.key()));
    // Across a restart too; the directory may be mounted, so it stays.
    drop(store);
    let store = open(&config);
    assert!(!store.is_complete(key).await.unwrap());
    let promise = store.reserve(0).await.unwrap();
    let partial = store.begin(thing.wanted.clone(), &promise).await.unwrap();
    assert!(partial.has_chunk(0) && partial.has_chunk(1) && !partial.has_chunk(2));
    for at in 0..thing.pieces() {
        if !partial.has_piece(at) {
            thing.write(&store, &partial, at).await.unwrap();
        }
    }
    store.finish(partial).await.unwrap();
    store.publish(snapshot(&[&thing])).await.unwrap();
    assert_whole(&store, &[&thing], "back").await;
    let directory = store.snapshot(&key).unwrap().directory.unwrap();
    assert_eq!(
        mounted.metadata().unwrap().ino(),
        std::fs::metadata(&directory).unwrap().ino(),
        "the same directory"
    );
    let mode = std::fs::metadata(directory.join("a.safetensors")).unwrap().mode();
    assert_eq!(mode & 0o777, 0o444);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_another_length_are_not_complete() {
    let directory = on_disk();
    let store = open(&config(directory.path()));
    let thing = aligned("a.safetensors", 17 << 20);
    let key = bring(&store, &[&thing]).await.unwrap().key();
    let path = store.stored_blob(thing.key()).await.unwrap().unwrap().path().to_owned();
    for len in [thing.blob.len() as u64 - 1, 5, 0, thing.blob.len() as u64 + 1] {
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(len).unwrap();
        assert!(!store.is_complete(key).await.unwrap(), "{len}");
        assert!(!store.has_blob(&thing.key()), "{len}");
        bring(&store, &[&thing]).await.unwrap();
        assert_whole(&store, &[&thing], &format!("{len}")).await;
    }
    std::fs::remove_file(&path).unwrap();
    assert!(!store.has_blob(&thing.key()));
    let error = store.stored_blob(thing.key()).await.unwrap_err();
    assert!(error.to_string().contains("file is missing"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_run_wrote_is_known_to_be_unread_until_it_is_compared() {
    let directory = on_disk();
    let config = config(directory.path());
    let thing = plain("a", TWO_CHUNKS);
    let store = open(&config);
    let promise = store.reserve(0).await.unwrap();
    let partial = store.begin(thing.wanted.clone(), &promise).await.unwrap();
    for at in 0..thing.pieces() {
        thing.write(&store, &partial, at).await.unwrap();
    }
    assert!(partial.restored().is_empty(), "this run wrote it");
    store.checkpoint().await.unwrap();
    store.close().await.unwrap();

    let store = open(&config);
    let path = store.blob_path(&thing.key());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[TWO_CHUNKS - 1] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let promise = store.reserve(0).await.unwrap();
    let partial = store.begin(thing.wanted.clone(), &promise).await.unwrap();
    assert_eq!(partial.restored(), [0, 1]);
    let read = async |chunk| partial.read_chunk(chunk, store.pool().acquire().await).await.unwrap().is_some();
    assert!(read(0).await && !read(1).await);
    assert!(partial.restored().is_empty() && partial.has_chunk(0) && !partial.has_chunk(1));
    thing.store(&store).await.unwrap();
    assert_sound(&store, &thing, "fetched again").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_someone_puts_in_a_blobs_place_is_not_followed() {
    let directory = on_disk();
    let store = open(&config(directory.path()));
    let thing = plain("a", 100);
    let key = bring(&store, &[&thing]).await.unwrap().key();
    let (path, theirs) = (store.blob_path(&thing.key()), directory.path().join("theirs"));
    std::fs::write(&theirs, &thing.blob).unwrap();
    let mode = std::fs::metadata(&theirs).unwrap().mode();
    let put_link = |at: &std::path::Path| {
        std::fs::remove_file(at).unwrap();
        std::os::unix::fs::symlink(&theirs, at).unwrap();
    };
    put_link(&path);
    assert!(!store.has_blob(&thing.key()));
    assert!(store.stored_blob(thing.key()).await.unwrap_err().to_string().contains("missing"));
    thing.store(&store).await.unwrap();
    assert_sound(&store, &thing, "fetched again").await;

    put_link(&store.snapshot(&key).unwrap().directory.unwrap().join("a"));
    assert!(!store.is_complete(key).await.unwrap());
    bring(&store, &[&thing]).await.unwrap();
    assert_whole(&store, &[&thing], "linked again").await;
    assert_eq!(std::fs::metadata(&theirs).unwrap().mode(), mode);

    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(!store.has_blob(&thing.key()));
    std::fs::write(path.join("note"), "mine").unwrap();
    let error = thing.store(&store).await.unwrap_err().to_string();
    assert!(error.contains(path.to_str().unwrap()) && error.contains("move it away"), "{error}");
    store.collect_garbage(true).await.unwrap();
    std::fs::remove_file(path.join("note")).unwrap();
    thing.store(&store).await.unwrap();
    assert_sound(&store, &thing, "in place of an empty directory").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_a_blob_open_is_told_that_it_will_arrive_anew() {
    let directory = on_disk();
    let store = open(&config(directory.path()));
    let thing = aligned("a.safetensors", 17 << 20);
    bring(&store, &[&thing]).await.unwrap();
    let (mut replaced, mut discarded) = (store.replaced(), store.discarded());
    let mut told = || replaced.try_recv().ok();
    assert_eq!(told(), None, "it has just arrived");

    store.discard_blob(thing.key()).await.unwrap();
    assert_eq!(told(), Some(thing.key()), "its manifest could not be believed");
    bring(&store, &[&thing]).await.unwrap();
    assert_eq!(told(), None);
    store.stored_blob(thing.key()).await.unwrap().unwrap().demote(&[1]).await.unwrap();
    assert_eq!(told(), Some(thing.key()), "a chunk could not be repaired");
    bring(&store, &[&thing]).await.unwrap();
    assert_eq!(told(), None);
    let path = store.blob_path(&thing.key());
    std::fs::OpenOptions::new().append(true).open(path).unwrap().set_len((17 << 20) + 9999).unwrap();
    bring(&store, &[&thing]).await.unwrap();
    assert_eq!(told(), Some(thing.key()), "its file had another length, and is another now");

    assert!(discarded.try_recv().is_err(), "what was served of it is right");
    store.remove("memory://m/model", false).await.unwrap();
    assert_eq!(told(), None, "nobody used it");
}
