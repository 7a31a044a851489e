//! One flight per blob, however many want it; work that is given up, taken up again, put first or held back.

use std::time::{Duration, Instant};

use futures::future::join_all;
use weightd_fetch::{Config, FetchError};
use weightd_source::{Fault, Faults, Rule};
use weightd_types::{ByteRange, Layout};

use crate::common::{Fixture, MODEL, assert_holds, put_model, soon, until};

/// Slow enough to be interrupted: 40 MiB in about two seconds.
fn slow() -> Config {
    Config { bandwidth_bytes: Some(20 << 20), ..Config::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_and_snapshots_share_one_flight() {
    let fixture = Fixture::new().await;
    let objects = put_model(&fixture.origin);
    let size: u64 = objects.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    let first = fixture.start(MODEL, 0).await;
    // Another snapshot of the same source that shares all objects but one.
    fixture.origin.put("model/extra", "x");
    let transfers = [fixture.start(MODEL, 0).await, fixture.start(MODEL, 3).await];
    let waiting = transfers.iter().chain([&first, &first, &first]).map(|transfer| transfer.wait());
    for outcome in soon(join_all(waiting)).await {
        assert_holds(&outcome.unwrap().snapshot.directory.unwrap(), &objects);
    }
    let served = fixture.origin.bytes_served();
    assert!(served < size + (1 << 20), "{served} bytes served for {size}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_is_dropped_stops_and_is_taken_up_where_it_was() {
    let faults = Faults::new(1);
    let fixture = Fixture::faulty(&faults, slow()).await;
    let objects = put_model(&fixture.origin);
    let transfer = fixture.start(MODEL, 0).await;
    let waiting = tokio::spawn({
        let transfer = transfer.clone();
        async move { transfer.wait().await }
    });
    until(|| transfer.done_bytes() > 18 << 20).await;
    waiting.abort();
    drop((waiting.await, transfer));
    until(|| fixture.fetcher.requests_in_flight() == 0).await;
    fixture.store().checkpoint().await.unwrap();
    let served = fixture.origin.bytes_served();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(fixture.origin.bytes_served(), served, "nobody wants it any more");
    let fixture = fixture.restart().await;
    let completed = soon(fixture.prefetch(Layout::Aligned)).await.unwrap();
    assert!(completed.reused_bytes >= 8 << 20, "{completed:?}");
    assert_holds(&completed.snapshot.directory.unwrap(), &objects);
    let (again, size) = (fixture.origin.bytes_served() - served, 40 << 20);
    assert!(
        again <= size + (1 << 20) - completed.reused_bytes,
        "{again} bytes more, {} reused",
        completed.reused_bytes
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_ends_what_waits_and_leaves_what_arrived() {
    let fixture = Fixture::faulty(&Faults::new(1), slow()).await;
    let objects = put_model(&fixture.origin);
    let transfer = fixture.start(MODEL, 0).await;
    let waiting = tokio::spawn({
        let transfer = transfer.clone();
        async move { transfer.wait().await }
    });
    until(|| transfer.done_bytes() > 18 << 20).await;
    fixture.fetcher.close().await;
    let outcome = soon(waiting).await.unwrap();
    assert!(matches!(outcome, Err(FetchError::Closed)), "{outcome:?}");
    drop((outcome, transfer));
    let fixture = fixture.restart().await;
    let completed = soon(fixture.prefetch(Layout::Aligned)).await.unwrap();
    assert!(completed.reused_bytes >= 8 << 20, "{completed:?}");
    assert_holds(&completed.snapshot.directory.unwrap(), &objects);
}

#[tokio::test(flavor = "multi_thread")]
async fn giving_up_and_coming_back_at_once_ends_well_every_time() {
    let faults = Faults::new(2).with(Rule::reads(Fault::Latency(Duration::from_millis(3))));
    let fixture = Fixture::faulty(&faults, Config::default()).await;
    let objects = put_model(&fixture.origin);
    for turn in 0..60 {
        let transfer = fixture.start(MODEL, 0).await;
        let _ = tokio::time::timeout(Duration::from_millis(turn % 13), transfer.wait()).await;
    }
    let completed = soon(fixture.prefetch(Layout::Aligned)).await.unwrap();
    assert_holds(&completed.snapshot.directory.unwrap(), &objects);
}

#[tokio::test(flavor = "multi_thread")]
async fn priority_overtakes_and_demand_overtakes_everything() {
    let config = Config { min_requests: 1, max_requests: 1, range_bytes: 8 << 20, ..slow() };
    let fixture = Fixture::faulty(&Faults::new(3), config).await;
    for model in ["low", "high"] {
        fixture.origin.put(&format!("{model}/w"), vec![1; 24 << 20]);
    }
    let low = fixture.start("memory://origin/low", 0).await;
    let high = fixture.start("memory://origin/high", 5).await;
    let key = low.manifest().objects[0].blob;
    let all = tokio::spawn({
        let (low, high) = (low.clone(), high.clone());
        async move { futures::join!(low.wait(), high.wait()) }
    });
    until(|| high.done_bytes() > 0).await;
    assert!(fixture.fetcher.demand(low.key(), key, ByteRange::new(16 << 20, 17 << 20)));
    let before = low.done_bytes();
    until(|| low.done_bytes() > before).await;
    assert!(high.done_bytes() < 24 << 20, "the demand was served before the rest of the one with priority");
    until(|| high.done_bytes() == 24 << 20).await;
    assert!(low.done_bytes() < 24 << 20, "priority went first");
    let (low, high) = soon(all).await.unwrap();
    low.unwrap();
    high.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bandwidth_limit_holds() {
    let fixture = Fixture::faulty(&Faults::new(4), slow()).await;
    put_model(&fixture.origin);
    let started = Instant::now();
    soon(fixture.prefetch(Layout::Aligned)).await.unwrap();
    assert!(started.elapsed() > Duration::from_millis(1700), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_told_by_the_names_of_the_manifest() {
    let fixture = Fixture::new().await;
    let objects = put_model(&fixture.origin);
    let transfer = fixture.start(MODEL, 0).await;
    soon(transfer.wait()).await.unwrap();
    let progress = transfer.progress();
    assert_eq!(progress.len(), objects.len());
    for (file, entry) in progress.iter().zip(&transfer.manifest().objects) {
        assert!(std::ptr::eq(file.path, &entry.object.path), "the name was copied");
        assert!(file.verified && file.present == file.total && file.total == entry.object.size);
    }
}
