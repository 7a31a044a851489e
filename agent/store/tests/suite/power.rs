//! One blob's whole way in, with the power cut after each operation of it.

use crate::common::{
    TWO_CHUNKS, assert_sound, assert_whole, bring, config, in_memory, open_losing, plain, snapshot,
};

/// How far the script came before the power went.
#[derive(Debug, Default)]
struct Reached {
    recorded: bool,
    finished: bool,
    published: bool,
    pinned: bool,
}

async fn script(
    store: &weightd_store::Store,
    reached: &mut Reached,
) -> Result<(), weightd_store::StoreError> {
    let (small, large) = (plain("small", 3000), plain("large", TWO_CHUNKS));
    let manifest = snapshot(&[&small, &large]);
    let _hold = store.expect(manifest.clone()).await?;
    let promise = store.reserve_for(&manifest).await?;
    let partial = store.begin(large.wanted.clone(), &promise).await?;
    large.write(store, &partial, 1).await?;
    store.checkpoint().await?;
    reached.recorded = true;
    large.write(store, &partial, 0).await?;
    store.finish(partial).await?;
    reached.finished = true;
    bring(store, &[&small, &large]).await?;
    reached.published = true;
    store.set_pinned(manifest.key(), true).await?;
    reached.pinned = true;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_after_any_operation_costs_nothing_acknowledged() {
    let (small, large) = (plain("small", 3000), plain("large", TWO_CHUNKS));
    let key = snapshot(&[&small, &large]).key();
    let mut cuts = 0;
    for moment in 1.. {
        let directory = in_memory();
        let config = config(directory.path());
        let (engine, store) = open_losing(&config);
        engine.cut_power_after(moment, moment);
        // Opening makes the store; from `moment` on it may fail too.
        let mut reached = Reached::default();
        if let Ok(store) = store {
            let _ = script(&store, &mut reached).await;
        }
        let all = !engine.is_cut();
        if all {
            engine.power_cut(moment).unwrap();
        }
        let context = format!("cut after {moment} operations, {reached:?}");
        let (_engine, store) = open_losing(&config);
        let store = store.unwrap_or_else(|error| panic!("{context}: {error}"));
        if reached.published {
            assert_whole(&store, &[&small, &large], &context).await;
            assert!(!reached.pinned || store.snapshot(&key).unwrap().pinned, "{context}");
        }
        if reached.finished {
            assert_sound(&store, &large, &context).await;
        } else if reached.recorded && !store.has_blob(&large.key()) {
            let promise = store.reserve(0).await.unwrap();
            let partial = store.begin(large.wanted.clone(), &promise).await.unwrap();
            assert!(partial.has_piece(1), "{context}");
            let (buffer, within) = partial.read_piece(1, store.pool().acquire().await).await.unwrap();
            assert!(buffer[within] == *large.piece(1), "{context}");
        }
        // Whatever happened, the next run completes.
        bring(&store, &[&small, &large]).await.unwrap_or_else(|error| panic!("{context}: {error}"));
        assert_whole(&store, &[&small, &large], &context).await;
        if all {
            break;
        }
        cuts += 1;
    }
    assert!(cuts > 30, "{cuts} cuts");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_while_a_store_is_made_leaves_one_that_opens() {
    for moment in 1..40 {
        let directory = in_memory();
        let config = config(directory.path());
        std::fs::create_dir_all(&config.directory).unwrap();
        let engine = weightd_store::io::PowerLossEngine::new(&config.directory).unwrap();
        engine.cut_power_after(moment, moment);
        let pool = weightd_store::io::BufferPool::new(2).unwrap();
        drop(weightd_store::Store::open_on(config.clone(), pool, std::sync::Arc::new(engine.clone())));
        if !engine.is_cut() {
            engine.power_cut(moment).unwrap();
        }
        let small = plain("small", 3000);
        let store = open_losing(&config).1.unwrap_or_else(|error| panic!("cut after {moment}: {error}"));
        bring(&store, &[&small]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_that_are_committed_together_are_all_durable() {
    for seed in 0..5 {
        let directory = in_memory();
        let config = config(directory.path());
        let (engine, store) = open_losing(&config);
        let store = store.unwrap();
        let things: Vec<_> = (0..60).map(|at| plain(&format!("{at}"), 5000)).collect();
        let promise = store.reserve(0).await.unwrap();
        let mut finishing = tokio::task::JoinSet::new();
        let mut partials = Vec::new();
        for thing in &things {
            let partial = store.begin(thing.wanted.clone(), &promise).await.unwrap();
            thing.write(&store, &partial, 0).await.unwrap();
            partials.push(partial);
        }
        for partial in partials {
            let store = store.clone();
            finishing.spawn(async move { store.finish(partial).await.map(drop) });
        }
        while let Some(finished) = finishing.join_next().await {
            finished.unwrap().unwrap();
        }
        engine.power_cut(seed).unwrap();
        drop((promise, store));
        let store = open_losing(&config).1.unwrap();
        for thing in &things {
            assert_sound(&store, thing, &format!("seed {seed}")).await;
        }
    }
}
