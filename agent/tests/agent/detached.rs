//! Prefetches that nobody waits for, and those that somebody no longer waits for.

use weightd_client::Client;
use weightd_proto::v1::{PrefetchRequest, RemoveRequest, SnapshotInfo, SnapshotState, prefetch_event::Event};

use crate::harness::{client, config, model, next, prefetch, request, start, state, until};

const MODEL: &str = "memory://m/model";
const BYTES: usize = 24 << 20;

/// So slow that a transfer is still under way when a test looks.
const SLOW: &str = "[fetch]\nbandwidth = \"1MiB/s\"";

fn detached() -> PrefetchRequest {
    PrefetchRequest { detach: true, pin: true, ..request(MODEL) }
}

#[tokio::test]
async fn a_detached_prefetch_goes_on_without_its_client_and_pins_what_it_brought() {
    let directory = tempfile::tempdir().unwrap();
    let agent = start(config(directory.path(), ""), &model(BYTES)).await;
    let client = client(&agent);
    let mut events = client.prefetch(detached()).await.unwrap();
    assert!(matches!(next(&mut events).await, Ok(Event::Resolved(_))));
    assert!(matches!(next(&mut events).await, Ok(Event::Detached(_))));
    assert!(events.next().await.unwrap().is_none());
    until(&client, Some(SnapshotState::Complete)).await;
    let waited = tokio::time::timeout(crate::harness::PATIENCE, async {
        while !client.list().await.unwrap()[0].pinned {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
    waited.await.expect("it is pinned once it is complete");
    agent.shutdown().await;
}

#[tokio::test]
async fn a_detached_prefetch_is_listed_as_soon_as_it_is_answered() {
    let directory = tempfile::tempdir().unwrap();
    let origin = model(BYTES);
    let agent = start(config(directory.path(), SLOW), &origin).await;
    let client = client(&agent);
    for round in 0..20 {
        origin.put(&format!("{round}/tokenizer.bin"), vec![7; BYTES]);
        let source = format!("memory://m/{round}");
        let mut events = client.prefetch(PrefetchRequest { detach: true, ..request(&source) }).await.unwrap();
        assert!(matches!(next(&mut events).await, Ok(Event::Resolved(_))));
        assert!(matches!(next(&mut events).await, Ok(Event::Detached(_))));
        let listed = client.list().await.unwrap();
        let found = listed.iter().find(|snapshot| snapshot.source == source);
        assert_eq!(found.map(|snapshot| snapshot.state()), Some(SnapshotState::Loading), "{source}");
    }
    agent.shutdown().await;
}

#[tokio::test]
async fn a_detached_prefetch_goes_on_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let origin = model(BYTES);
    let agent = start(config(directory.path(), SLOW), &origin).await;
    let mut events = client(&agent).prefetch(detached()).await.unwrap();
    assert!(matches!(next(&mut events).await, Ok(Event::Resolved(_))));
    assert!(matches!(next(&mut events).await, Ok(Event::Detached(_))));
    until(&client(&agent), Some(SnapshotState::Loading)).await;
    agent.shutdown().await;

    let mut agent = start(config(directory.path(), ""), &origin).await;
    assert_eq!(state(&client(&agent)).await, Some(SnapshotState::Interrupted));
    agent.listen().await.unwrap();
    until(&client(&agent), Some(SnapshotState::Complete)).await;
    agent.shutdown().await;

    // What is done is not done again.
    let reads = origin.read_calls();
    let mut agent = start(config(directory.path(), ""), &origin).await;
    agent.listen().await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert_eq!(origin.read_calls(), reads);
    agent.shutdown().await;
}

/// Has the agent bring it by itself.
async fn detach(client: &Client, source: &str, pin: bool) {
    let mut events = client.prefetch(PrefetchRequest { detach: true, pin, ..request(source) }).await.unwrap();
    assert!(matches!(next(&mut events).await, Ok(Event::Resolved(_))));
    assert!(matches!(next(&mut events).await, Ok(Event::Detached(_))));
}

async fn until_pinned(client: &Client, source: &str) {
    let waited = tokio::time::timeout(crate::harness::PATIENCE, async {
        let is_pinned = |found: &SnapshotInfo| found.source == source && found.pinned;
        while !client.list().await.unwrap().iter().any(is_pinned) {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{source} was never pinned"));
}

#[tokio::test]
async fn a_pin_that_is_asked_for_while_it_is_on_its_way_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let agent = start(config(directory.path(), "[fetch]\nbandwidth = \"8MiB/s\""), &model(BYTES)).await;
    let client = client(&agent);
    detach(&client, MODEL, false).await;
    until(&client, Some(SnapshotState::Loading)).await;
    detach(&client, MODEL, true).await;
    until_pinned(&client, MODEL).await;
    agent.shutdown().await;
}

#[tokio::test]
async fn a_pin_is_not_taken_back_by_who_asks_without_one_also_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let origin = model(BYTES);
    let agent = start(config(directory.path(), SLOW), &origin).await;
    detach(&client(&agent), MODEL, true).await;
    detach(&client(&agent), MODEL, false).await;
    until(&client(&agent), Some(SnapshotState::Loading)).await;
    agent.shutdown().await;
    let mut agent = start(config(directory.path(), ""), &origin).await;
    agent.listen().await.unwrap();
    until_pinned(&client(&agent), MODEL).await;
    agent.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_while_a_job_ends_is_done_and_then_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let origin = model(1);
    let agent = start(config(directory.path(), ""), &origin).await;
    let client = client(&agent);
    for round in 0_u64..60 {
        origin.put(&format!("{round}/tokenizer.bin"), vec![7; 1 << 16]);
        let source = format!("memory://m/{round}");
        detach(&client, &source, false).await;
        // So that the second comes before the end of the first, after it, or in the middle of it.
        tokio::time::sleep(std::time::Duration::from_micros(round * 300)).await;
        detach(&client, &source, true).await;
        until_pinned(&client, &source).await;
    }
    agent.shutdown().await;
    let lists = origin.list_calls();
    let mut agent = start(config(directory.path(), ""), &origin).await;
    agent.listen().await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert_eq!(origin.list_calls(), lists, "nothing is left to do");
    agent.shutdown().await;
}

#[tokio::test]
async fn removing_gives_up_a_detached_prefetch() {
    let directory = tempfile::tempdir().unwrap();
    let origin = model(BYTES);
    let agent = start(config(directory.path(), SLOW), &origin).await;
    let client = client(&agent);
    let mut events = client.prefetch(detached()).await.unwrap();
    assert!(matches!(next(&mut events).await, Ok(Event::Resolved(_))));
    assert!(matches!(next(&mut events).await, Ok(Event::Detached(_))));
    until(&client, Some(SnapshotState::Loading)).await;
    client
        .remove(RemoveRequest { snapshot: MODEL.to_owned(), force: false, allow_missing: false })
        .await
        .unwrap();
    assert_eq!(state(&client).await, None);
    assert!(client.status().await.unwrap().transfers.is_empty());
    agent.shutdown().await;
}

#[tokio::test]
async fn a_transfer_ends_with_the_last_who_waits_and_resumes_with_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let origin = model(BYTES);
    let agent = start(config(directory.path(), "[fetch]\nbandwidth = \"3MiB/s\""), &origin).await;
    let client = client(&agent);
    let mut events = client.prefetch(request(MODEL)).await.unwrap();
    loop {
        match next(&mut events).await.unwrap() {
            Event::Progress(progress) if progress.done_bytes > 8 << 20 => break,
            Event::Completed(_) => panic!("too fast for this test"),
            _ => {}
        }
    }
    let status = client.status().await.unwrap();
    assert_eq!(status.transfers.len(), 1);
    assert!(status.transfers[0].done_bytes > 0);
    drop(events);
    until(&client, Some(SnapshotState::Interrupted)).await;
    agent.shutdown().await;

    let agent = start(config(directory.path(), ""), &origin).await;
    let client = crate::harness::client(&agent);
    let completed = prefetch(&client, request(MODEL)).await.unwrap();
    assert!(completed.reused_bytes >= 8 << 20, "{completed:?}");
    assert!(completed.fetched_bytes < 17 << 20, "{completed:?}");
    agent.shutdown().await;
}
