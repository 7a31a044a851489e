//! More names than a file system gives one file: snapshots beyond that have copies.

use std::os::unix::fs::MetadataExt;

use weightd_harness::SmallDisk;
use weightd_store::Store;

use crate::common::{assert_whole, bring, config, on_disk, open, plain, snapshot};

/// What ext4 allows.
const MOST_LINKS: u64 = 65_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_without_links_left_is_copied_and_the_copy_is_as_good() {
    let directory = on_disk();
    let Some(disk) = SmallDisk::mount(directory.path(), 64 << 20) else { return };
    let config = config(disk.path());
    let store = open(&config);
    let (shared, own) = (plain("shared", 200_000), plain("own", 10));
    bring(&store, &[&shared]).await.unwrap();
    let blob = store.stored_blob(shared.key()).await.unwrap().unwrap().path().to_owned();
    let others = disk.path().join("others");
    std::fs::create_dir(&others).unwrap();
    for at in std::fs::metadata(&blob).unwrap().nlink()..MOST_LINKS {
        std::fs::hard_link(&blob, others.join(at.to_string())).unwrap();
    }

    let both = [&shared, &own];
    let key = bring(&store, &both).await.unwrap().key();
    let copied = store.snapshot(&key).unwrap().directory.unwrap();
    let inode = |path: &std::path::Path| std::fs::metadata(path).unwrap().ino();
    let file = copied.join("shared");
    assert_ne!(inode(&file), inode(&blob), "there is no link left for it");
    assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o444);
    store.close().await.unwrap();
    let store = Store::open(config).unwrap();
    assert_whole(&store, &both, "reopened").await;

    // It may be mounted, so what is right is left as it is.
    let mounted = inode(&copied);
    store.mark_missing(shared.key()).await.unwrap();
    store.publish(snapshot(&both)).await.unwrap();
    assert_eq!(inode(&copied), mounted);
    assert!(store.strange_files(snapshot(&both).into()).await.unwrap().is_empty());

    // A copy that rots is found, and made anew.
    let mut rotten = shared.blob.clone();
    rotten[150_000] ^= 1;
    std::fs::write(&file, rotten).unwrap();
    assert!(store.is_complete(key).await.unwrap(), "its length is right");
    let strange = store.strange_files(snapshot(&both).into()).await.unwrap();
    assert_eq!(strange.iter().map(|entry| entry.object.path.as_str()).collect::<Vec<_>>(), ["shared"]);
    assert!(!store.is_complete(key).await.unwrap());
    store.publish(snapshot(&both)).await.unwrap();
    assert_whole(&store, &both, "copied again").await;

    // With links to be had again, the next publication takes one.
    std::fs::remove_dir_all(&others).unwrap();
    store.mark_missing(shared.key()).await.unwrap();
    store.publish(snapshot(&both)).await.unwrap();
    assert_eq!(inode(&file), inode(&blob));

    for each in [snapshot(&both), snapshot(&[&shared])] {
        store.remove(&each.key().to_string(), false).await.unwrap();
    }
    assert!(!copied.exists() && !blob.exists());
    assert_eq!(store.usage().await.unwrap().used, 0);
}
