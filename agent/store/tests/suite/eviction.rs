//! Who goes when room is needed, and who never does.

use std::{sync::Arc, time::Duration};

use weightd_store::{Config, Store, StoreError, Wish};
use weightd_types::Layout;

use crate::common::{Thing, assert_whole, bring, config, in_memory, on_disk, open, plain, snapshot};

const MIB: usize = 1 << 20;

fn limited(directory: &std::path::Path, quota: u64) -> Config {
    Config { quota_bytes: Some(quota), ..config(directory) }
}

/// Snapshots of a mebibyte each, used in this order; a use is remembered to the second.
async fn used_in_order(store: &Store, names: &[&str]) -> Vec<Arc<Thing>> {
    let mut things = Vec::new();
    for name in names {
        let thing = plain(name, MIB);
        bring(store, &[&thing]).await.unwrap();
        things.push(thing);
        tokio::time::sleep(Duration::from_millis(1050)).await;
    }
    things
}

fn is_there(store: &Store, thing: &Arc<Thing>) -> bool {
    let known = store.snapshot(&snapshot(&[thing]).key()).is_some();
    assert_eq!(known, store.has_blob(&thing.key()), "a snapshot and its blob go together");
    known
}

#[tokio::test(flavor = "multi_thread")]
async fn the_least_recently_used_goes_first_down_to_the_low_watermark() {
    let directory = in_memory();
    let mut config = limited(directory.path(), 4 << 20);
    (config.high_watermark, config.low_watermark) = (1.0, 0.75);
    let store = open(&config);
    let things = used_in_order(&store, &["a", "b", "c"]).await;
    store.touch(snapshot(&[&things[0]]).key()).await.unwrap();
    store.reserve(1 << 20).await.unwrap();
    assert!(things.iter().all(|thing| is_there(&store, thing)), "up to the high watermark nothing goes");
    // Recency is remembered by the next agent.
    store.close().await.unwrap();
    drop(store);
    let store = open(&config);
    let promise = store.reserve((1 << 20) + 1).await.unwrap();
    let left: Vec<_> = things.iter().map(|thing| is_there(&store, thing)).collect();
    assert_eq!(
        left,
        [true, false, false],
        "b and c are older than a, and 0.75 of the quota leaves room for one"
    );
    let usage = store.usage().await.unwrap();
    assert_eq!((usage.used, usage.reserved), (1 << 20, (1 << 20) + 1));
    drop(promise);
    assert_eq!(store.usage().await.unwrap().reserved, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn pinned_and_used_snapshots_stay_and_nothing_goes_in_vain() {
    let directory = in_memory();
    let store = open(&limited(directory.path(), 3 << 20));
    let (pinned, used, idle) = (plain("p", MIB), plain("u", MIB), plain("i", MIB / 2));
    let key = bring(&store, &[&pinned]).await.unwrap().key();
    store.set_pinned(key, true).await.unwrap();
    let hold = store.hold(bring(&store, &[&used]).await.unwrap().key()).unwrap();
    bring(&store, &[&idle]).await.unwrap();
    let error = store.reserve(2 << 20).await.unwrap_err();
    let StoreError::Full { needed, available, ref limit, .. } = error else { panic!("{error}") };
    assert_eq!(
        (needed, available, limit.as_str()),
        (2 << 20, 1 << 20, "the store's quota: `store.quota`, raise it for more")
    );
    assert!(is_there(&store, &idle), "evicting it would not have helped");
    store.reserve(1 << 20).await.unwrap();
    assert!(!is_there(&store, &idle) && is_there(&store, &pinned) && is_there(&store, &used));
    assert!(matches!(store.remove(&key.to_string(), false).await, Err(StoreError::Pinned { .. })));
    let in_use = snapshot(&[&used]).key().to_string();
    assert!(matches!(store.remove(&in_use, true).await, Err(StoreError::InUse { .. })));
    drop(hold);
    store.reserve(2 << 20).await.unwrap();
    assert!(!is_there(&store, &used) && is_there(&store, &pinned));
}

#[tokio::test(flavor = "multi_thread")]
async fn shared_blobs_count_once_and_go_with_their_last_snapshot() {
    let directory = in_memory();
    let store = open(&limited(directory.path(), 4 << 20));
    let (shared, own) = (plain("shared", 2 * MIB), plain("own", MIB));
    bring(&store, &[&shared]).await.unwrap();
    let both = bring(&store, &[&shared, &own]).await.unwrap();
    assert_eq!(store.usage().await.unwrap().used, 3 << 20);
    store.set_pinned(both.key(), true).await.unwrap();
    assert!(matches!(store.reserve(2 << 20).await, Err(StoreError::Full { .. })));
    assert!(store.snapshot(&snapshot(&[&shared]).key()).is_some(), "its only blob is needed by a pinned one");
    store.set_pinned(both.key(), false).await.unwrap();
    store.reserve(4 << 20).await.unwrap();
    assert!(store.snapshots().is_empty() && !store.has_blob(&shared.key()));
    assert_eq!(store.usage().await.unwrap().used, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_work_goes_before_whole_snapshots_unless_it_goes_on() {
    let directory = in_memory();
    let store = open(&limited(directory.path(), 40 << 20));
    let whole = plain("whole", MIB);
    bring(&store, &[&whole]).await.unwrap();
    let (partial, other) = (plain("partial", 17 << 20), plain("other", 17 << 20));
    let begin = async |thing: &Arc<Thing>| {
        let hold = store.expect(snapshot(&[thing])).await.unwrap();
        let opened =
            store.begin(thing.wanted.clone(), &store.reserve(17 << 20).await.unwrap()).await.unwrap();
        thing.write(&store, &opened, 0).await.unwrap();
        hold
    };
    drop(begin(&partial).await);
    let going_on = begin(&other).await;
    store.checkpoint().await.unwrap();
    assert_eq!(store.usage().await.unwrap().used, 35 << 20);
    store.reserve(10 << 20).await.unwrap();
    assert!(is_there(&store, &whole));
    let presence = |thing| store.presence(Arc::new(snapshot(&[thing])));
    assert_eq!(presence(&partial).await.unwrap(), [(0, false)]);
    assert_eq!(presence(&other).await.unwrap(), [(8 << 20, false)]);
    drop(going_on);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completed_blob_is_no_interrupted_work_whatever_the_index_says() {
    let directory = in_memory();
    let config = limited(directory.path(), 20 << 20);
    let store = open(&config);
    let thing = plain("pinned", 9 << 20);
    let partial = store.begin(thing.wanted.clone(), &store.reserve(9 << 20).await.unwrap()).await.unwrap();
    thing.write(&store, &partial, 0).await.unwrap();
    store.checkpoint().await.unwrap();
    // Forgetting a record is not durable: after a crash the index of before is there, and the blob is complete.
    let index = std::fs::read(config.directory.join("index.redb")).unwrap();
    drop(partial);
    let key = bring(&store, &[&thing]).await.unwrap().key();
    drop(store);
    std::fs::write(config.directory.join("index.redb"), index).unwrap();
    let store = open(&config);
    store.set_pinned(key, true).await.unwrap();
    assert!(store.reserve(15 << 20).await.is_err());
    store.collect_garbage(true).await.unwrap();
    assert_whole(&store, &[&thing], "pinned").await;
    assert!(store.has_blob(&thing.key()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_floor_of_free_space_stays_free() {
    let directory = in_memory();
    let mut config = config(directory.path());
    config.floor = 0.999_999;
    let store = open(&config);
    let error = store.reserve(1 << 40).await.unwrap_err();
    assert!(error.to_string().contains("of the file system stays free: `store.floor`"), "{error}");
    assert!(error.to_string().contains("1.00 TiB needed"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_what_nobody_wants_any_more() {
    let directory = in_memory();
    let store = open(&config(directory.path()));
    let (kept, orphan, waiting) = (plain("kept", 10), plain("orphan", 20), plain("waiting", 17 << 20));
    bring(&store, &[&kept]).await.unwrap();
    orphan.store(&store).await.unwrap();
    drop(store.expect(snapshot(&[&waiting])).await.unwrap());
    let partial = store.begin(waiting.wanted.clone(), &store.reserve(0).await.unwrap()).await.unwrap();
    waiting.write(&store, &partial, 1).await.unwrap();
    drop(partial);
    store.checkpoint().await.unwrap();
    let collected = store.collect_garbage(false).await.unwrap();
    assert_eq!(collected.removed_blobs, 1, "{collected:?}");
    assert!(!store.has_blob(&orphan.key()) && store.has_blob(&kept.key()));
    assert_eq!(
        store.presence(Arc::new(snapshot(&[&waiting]))).await.unwrap()[0].0,
        8 << 20,
        "it may be resumed"
    );
    let collected = store.collect_garbage(true).await.unwrap();
    assert!(collected.freed_bytes >= 17 << 20, "{collected:?}");
    assert_eq!(store.snapshots().len(), 1);
    assert_eq!(store.usage().await.unwrap().used, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_someone_begins_to_use_stays_however_close_its_eviction() {
    let directory = on_disk();
    let store = open(&limited(directory.path(), 1 << 20));
    let thing = plain("wanted", MIB);
    let (mut stayed, mut went) = (0, 0);
    for turn in 0..60 {
        let key = bring(&store, &[&thing]).await.unwrap().key();
        let using = tokio::spawn({
            let store = store.clone();
            async move {
                tokio::time::sleep(Duration::from_micros(turn * 100)).await;
                store.hold(key)
            }
        });
        let room = store.reserve(1).await;
        match using.await.unwrap() {
            Ok(hold) => {
                // One that began before the choice stood in its way.
                assert!(room.is_err(), "turn {turn}: it was evicted while it was used");
                assert_whole(&store, &[&thing], &format!("turn {turn}")).await;
                drop(hold);
                stayed += 1;
            }
            Err(error) => {
                assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
                went += 1;
            }
        }
        drop(room);
    }
    assert!(stayed + went == 60 && went > 0, "{stayed} stayed, {went} went");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_published_without_its_blobs_nor_collected_while_it_is() {
    let directory = in_memory();
    let store = open(&config(directory.path()));
    let (here, missing) = (plain("here", 100), plain("missing", 200));
    here.store(&store).await.unwrap();
    let error = store.publish(snapshot(&[&here, &missing])).await.unwrap_err();
    assert!(matches!(&error, StoreError::Incomplete { name } if name.ends_with("/missing")), "{error}");
    assert!(store.snapshots().is_empty());

    let many: Vec<_> = (0..300).map(|at| plain(&format!("d{}/{at}", at % 40), 10)).collect();
    let many: Vec<_> = many.iter().collect();
    let name = snapshot(&many).key().to_string();
    for _ in 0..20 {
        bring(&store, &many).await.unwrap();
        store.mark_missing(many[0].key()).await.unwrap();
        std::fs::remove_file(store.config().directory.join("snapshots").join(&name).join("d0/0")).unwrap();
        let (published, collected) = tokio::join!(store.publish(snapshot(&many)), async {
            let mut collected = Ok(());
            for _ in 0..10 {
                collected = collected.and(store.collect_garbage(false).await.map(drop));
            }
            collected
        });
        published.unwrap();
        collected.unwrap();
        assert_whole(&store, &many, "published beside a collection").await;
    }
}

/// Begins a blob of a snapshot that is expected, and gives it up before anything of it is recorded.
async fn given_up(store: &Store, thing: &Arc<Thing>) {
    let _hold = store.expect(snapshot(&[thing])).await.unwrap();
    let promise = store.reserve(0).await.unwrap();
    let partial = store.begin(thing.wanted.clone(), &promise).await.unwrap();
    thing.write(store, &partial, 0).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_a_snapshot_that_was_given_up_frees_what_had_arrived_of_it() {
    let directory = in_memory();
    let store = open(&limited(directory.path(), 20 << 20));
    let thing = plain("a", 17 << 20);
    given_up(&store, &thing).await;
    let removed = store.remove("memory://m/model", false).await.unwrap();
    assert_eq!(removed.freed_bytes, 17 << 20);
    assert!(!store.blob_path(&thing.key()).exists());
    assert_eq!(store.usage().await.unwrap().used, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_nobody_can_take_up_make_room() {
    let directory = in_memory();
    let config = limited(directory.path(), 20 << 20);
    let (lost, wanted) = (plain("lost", 17 << 20), plain("wanted", 10 << 20));
    let store = open(&config);
    given_up(&store, &lost).await;
    store.close().await.unwrap();
    // As after a kill: nothing was recorded.
    std::fs::remove_file(config.directory.join("index.redb")).unwrap();
    let store = open(&config);
    let hold = store.hold(snapshot(&[&lost]).key());
    bring(&store, &[&wanted]).await.unwrap();
    assert!(hold.is_ok() && !store.blob_path(&lost.key()).exists() && is_there(&store, &wanted));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_uri_means_the_snapshot_used_last_also_within_a_second_and_after_reopening() {
    let directory = in_memory();
    let config = config(directory.path());
    let mut store = open(&config);
    let (one, other) = (plain("one", 10), plain("other", 10));
    let first = bring(&store, &[&one, &other]).await.unwrap().key();
    let second = bring(&store, &[&one]).await.unwrap().key();
    assert_eq!(store.find("memory://m/model").unwrap().key(), second);
    for key in [first, second, first, second, first] {
        store.touch(key).await.unwrap();
        assert_eq!(store.find("memory://m/model").unwrap().key(), key);
        store.close().await.unwrap();
        store = open(&config);
        assert_eq!(store.find("memory://m/model").unwrap().key(), key, "reopened");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wanted_stays_also_after_reopening_until_the_last_wish_for_it_ends() {
    let directory = in_memory();
    let config = limited(directory.path(), 3 << 20);
    let store = open(&config);
    let (wanted, other) = (plain("wanted", MIB), plain("other", MIB));
    let key = bring(&store, &[&wanted]).await.unwrap().key();
    let wish = |source: &str| Wish::new(source.parse().unwrap(), Layout::Aligned, 0).keeping(&[key]);
    let (first, second) = (wish("memory://m/model"), wish("memory://m/again"));
    store.set_wish(first.clone()).await.unwrap();
    store.set_wish(second.clone()).await.unwrap();
    bring(&store, &[&other]).await.unwrap();
    store.close().await.unwrap();
    let store = open(&config);
    assert_eq!(store.wishes().await.unwrap().len(), 2);
    store.forget_wish(&second).await.unwrap();
    store.reserve(2 << 20).await.unwrap();
    assert!(is_there(&store, &wanted) && !is_there(&store, &other));
    assert!(matches!(store.reserve(3 << 20).await, Err(StoreError::Full { .. })));
    assert!(matches!(store.remove(&key.to_string(), false).await, Err(StoreError::Wanted { .. })));
    store.forget_wish(&first).await.unwrap();
    store.reserve(3 << 20).await.unwrap();
    assert!(!is_there(&store, &wanted));
}
