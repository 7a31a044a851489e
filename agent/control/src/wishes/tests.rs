//! Wishes on a disk that fails, and of an agent that ends.

use std::{io::ErrorKind, time::Duration};

use weightd_proto::v1::{FailureKind, Layout, SetWantedRequest, WantedModel, WantedState};
use weightd_store::StoreError;

use crate::tests::Fixture;

const A: &str = "memory://m/a";
const B: &str = "memory://m/b";

fn request(sources: &[&str]) -> SetWantedRequest {
    let model = |source: &&str| WantedModel {
        source: (*source).to_owned(),
        layout: Layout::Aligned.into(),
        priority: 0,
    };
    SetWantedRequest { models: sources.iter().map(model).collect(), ..SetWantedRequest::default() }
}

async fn set(fixture: &Fixture, sources: &[&str]) -> Vec<WantedState> {
    let control = &fixture.control;
    control.wishes.set(control, request(sources)).await.unwrap().models
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(60), async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never so: {what}"));
}

async fn until_complete(fixture: &Fixture, sources: &[&str]) {
    until("all is here, and nothing more is being done about it", async || {
        let is_here = |state: &WantedState| state.complete && state.failure.is_none();
        set(fixture, sources).await.iter().all(is_here)
            && !fixture.control.store().snapshots().iter().any(|record| record.in_use)
    })
    .await;
}

/// Two models at the origin, and the first of them here and wanted.
async fn with_one() -> Fixture {
    let fixture = Fixture::new().await;
    for name in ["a", "b"] {
        fixture.origin.put(&format!("{name}/tokenizer.bin"), vec![1; 1 << 16]);
    }
    until_complete(&fixture, &[A]).await;
    fixture
}

fn kind(state: &WantedState) -> Option<FailureKind> {
    state.failure.as_ref().map(weightd_proto::v1::Failure::kind)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_disk_refuses_is_said_of_the_model_it_came_with() {
    let fixture = with_one().await;
    fixture.disk.fail_writes_with(ErrorKind::StorageFull, 0);
    let states = set(&fixture, &[A, B]).await;
    assert!(states[0].complete && states[0].failure.is_none(), "{states:?}");
    assert_eq!(kind(&states[1]), Some(FailureKind::Disk), "{states:?}");
    assert!(!states[1].failure_message.is_empty());
    fixture.disk.heal();
    until_complete(&fixture, &[A, B]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_half_let_go_of_stops_nothing_and_is_seen_to_when_it_is_wanted_again() {
    let fixture = with_one().await;
    let store = fixture.control.store();
    fixture.disk.fail_writes_with(ErrorKind::StorageFull, 0);
    assert!(set(&fixture, &[]).await.is_empty());
    let state = set(&fixture, &[A]).await.remove(0);
    assert!(state.complete && kind(&state) == Some(FailureKind::Disk), "{state:?}");
    fixture.disk.heal();
    until_complete(&fixture, &[A]).await;
    assert_eq!(store.wishes().await.unwrap()[0].snapshots().count(), 1, "what was kept for it is kept on");
    until("it is removed", async || store.remove(A, true).await.is_ok()).await;
    until_complete(&fixture, &[A]).await;

    fixture.disk.fail_writes_with(ErrorKind::StorageFull, 0);
    set(&fixture, &[]).await;
    fixture.disk.heal();
    set(&fixture, &[]).await;
    assert!(store.wishes().await.unwrap().is_empty(), "the next call lets go of it");
    assert!(!store.find(A).unwrap().wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_ends_lets_go_of_nothing() {
    let fixture = with_one().await;
    fixture.control.stopping.cancel();
    let refused = fixture.control.wishes.set(&fixture.control, request(&[])).await;
    assert!(matches!(refused, Err(StoreError::Closed)), "{refused:?}");
    let kept = fixture.control.wishes.kept.lock().await;
    let known: Vec<_> =
        kept.values().map(|known| (known.cancelled.is_cancelled(), known.is_ending)).collect();
    assert_eq!(known, [(true, false)], "its tasks end, and no wish does");
    assert_eq!(fixture.control.store().wishes().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_does_not_name_all_lets_go_of_nothing() {
    let fixture = with_one().await;
    let some = SetWantedRequest { keep_others: true, ..request(&[B]) };
    let control = &fixture.control;
    let answer = control.wishes.set(control, some).await.unwrap();
    assert_eq!(answer.models.len(), 1, "it says how those stand that were asked about");
    assert_eq!(control.store().wishes().await.unwrap().len(), 2);
    assert!(control.store().find(A).unwrap().wanted);
    until_complete(&fixture, &[B]).await;
    assert!(!control.store().find(A).unwrap().wanted);
}
