//! Models that are wanted on a node: brought, kept, and let go, whatever happens to the agent meanwhile.

use weightd_client::Client;
use weightd_harness::{FakeGcs, require};
use weightd_proto::v1::{FailureKind, Layout, SetWantedRequest, SnapshotInfo, WantedModel, WantedState};

use crate::{place::Place, program::until};

const BYTES: usize = 20 << 20;

async fn bucket(models: &[&str]) -> Result<FakeGcs, weightd_harness::Unready> {
    let gcs = FakeGcs::start().await?;
    gcs.create_bucket("models").await.unwrap();
    for (at, model) in models.iter().enumerate() {
        let bytes = vec![u8::try_from(at).unwrap(); BYTES];
        gcs.upload("models", &format!("{model}/tokenizer.bin"), bytes).await.unwrap();
    }
    Ok(gcs)
}

/// Says what is wanted, and hears how it stands.
async fn set(place: &Place, sources: &[&str]) -> Vec<WantedState> {
    set_with(place, sources, 3600).await
}

async fn set_with(place: &Place, sources: &[&str], list_again_seconds: i64) -> Vec<WantedState> {
    let model = |source: &&str| WantedModel {
        source: (*source).to_owned(),
        layout: Layout::Aligned.into(),
        priority: 0,
    };
    let request = SetWantedRequest {
        models: sources.iter().map(model).collect(),
        list_again_after: Some(prost_types::Duration { seconds: list_again_seconds, nanos: 0 }),
        keep_others: false,
    };
    let client = Client::connect(&place.socket()).await.unwrap();
    let answer = client.set_wanted(request).await.unwrap().models;
    assert_eq!(answer.len(), sources.len());
    answer
}

async fn until_complete(place: &Place, sources: &[&str]) {
    until("all that is wanted is here", async || {
        set(place, sources).await.iter().all(|state| state.complete).then_some(())
    })
    .await;
}

async fn snapshots(place: &Place) -> Vec<SnapshotInfo> {
    Client::connect(&place.socket()).await.unwrap().list().await.unwrap()
}

/// Whether a source is in the store, and whether it is kept because it is wanted.
async fn held(place: &Place, source: &str) -> Option<bool> {
    snapshots(place).await.iter().find(|found| found.source == source).map(|found| found.wanted)
}

#[tokio::test(flavor = "multi_thread")]
async fn wanted_models_survive_pressure_and_restarts_until_they_are_let_go() {
    let gcs = require!(bucket(&["a", "b", "c"]).await);
    let place = Place::new("quota = \"50MiB\"").gcs(&gcs.endpoint());
    let mut agent = place.agent().await;
    let (a, b, c) = ("gs://models/a", "gs://models/b", "gs://models/c");
    until_complete(&place, &[a]).await;
    assert_eq!(held(&place, a).await, Some(true));
    assert!(place.ask("ls").done().contains("wanted"));
    assert_eq!(place.ask(&format!("get {a} -o json")).json()["snapshot"]["wanted"], true);

    // It was used least recently, and there is room for one beside it.
    for (next, gone) in [(b, c), (c, b)] {
        place.ask(&format!("prefetch {next}")).done();
        assert_eq!((held(&place, a).await, held(&place, gone).await), (Some(true), None), "{next}");
    }
    place.ask(&format!("rm {a}")).failed(77, &["wanted on this node", "--force"]);

    // The next agent knows it before anyone says so, and although the origin is away.
    agent.kill();
    let nobody = format!("http://127.0.0.1:{}", weightd_harness::unused_port().unwrap());
    let place = place.gcs(&nobody);
    let agent = place.agent().await;
    assert_eq!(held(&place, a).await, Some(true));
    drop(agent);
    let place = place.gcs(&gcs.endpoint());
    let _agent = place.agent().await;
    place.ask(&format!("prefetch {b}")).done();
    assert_eq!((held(&place, a).await, held(&place, c).await), (Some(true), None));

    assert!(set(&place, &[]).await.is_empty());
    assert_eq!(held(&place, a).await, Some(false));
    place.ask(&format!("get {a}")).done();
    for next in [b, c] {
        place.ask(&format!("prefetch {next}")).done();
    }
    assert_eq!(held(&place, a).await, None, "what nobody wants any more makes room");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wanted_model_goes_on_after_a_kill_although_nobody_asks_again() {
    let gcs = require!(bucket(&["a"]).await);
    let place = Place::new("[fetch]\nbandwidth = \"4MiB/s\"").gcs(&gcs.endpoint());
    let mut agent = place.agent().await;
    until("some of it is here", async || {
        let state = set(&place, &["gs://models/a"]).await.remove(0);
        assert!(!state.complete, "too fast for this test");
        (state.present_bytes > 4 << 20 && state.total_bytes == BYTES as u64).then_some(())
    })
    .await;
    agent.kill();
    let _agent = place.agent().await;
    until("it is complete", async || (place.ask("path gs://models/a").code == Some(0)).then_some(())).await;
    assert_eq!(held(&place, "gs://models/a").await, Some(true));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changed_at_the_origin_is_brought_while_the_old_snapshot_stays() {
    let gcs = require!(bucket(&["a"]).await);
    let place = Place::new("[fetch]\nbandwidth = \"8MiB/s\"").gcs(&gcs.endpoint());
    let _agent = place.agent().await;
    let source = "gs://models/a";
    until_complete(&place, &[source]).await;
    let old = set(&place, &[source]).await.remove(0).snapshot_id;
    gcs.upload("models", "a/tokenizer.bin", vec![9; BYTES]).await.unwrap();
    let mut both = false;
    until("the new one is here", async || {
        let state = set_with(&place, &[source], 1).await.remove(0);
        assert!(state.complete, "{state:?}");
        both |= snapshots(&place).await.iter().filter(|found| found.wanted).count() == 2;
        (state.snapshot_id != old).then_some(())
    })
    .await;
    assert!(both, "the old one was kept while the new one was on its way");
    let wanted: Vec<_> = snapshots(&place).await.into_iter().filter(|found| found.wanted).collect();
    assert!(wanted.len() == 1 && wanted[0].id != old, "the old one may go now: {wanted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_says_why_stops_no_other_and_is_brought_once_it_is_mended() {
    let gcs = require!(bucket(&["a"]).await);
    let place = Place::new("").gcs(&gcs.endpoint());
    let _agent = place.agent().await;
    let sources = ["models/a", "gs://models/later", "gs://models/a"];
    let states = until("two have failed and one is here", async || {
        let states = set(&place, &sources).await;
        (states[1].failure.is_some() && states[2].complete).then_some(states)
    })
    .await;
    let kind = |at: usize| states[at].failure.as_ref().unwrap().kind();
    assert_eq!((kind(0), kind(1)), (FailureKind::Usage, FailureKind::NotFound));
    assert!(states[1].failure_message.contains("gs://models/later"), "{states:?}");
    gcs.upload("models", "later/tokenizer.bin", vec![5; BYTES]).await.unwrap();
    until("what was mended is here, although the request is the same", async || {
        let state = set(&place, &sources).await.remove(1);
        (state.complete && state.failure.is_none()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_removed_by_force_comes_back_while_it_is_wanted() {
    let gcs = require!(bucket(&["a"]).await);
    let place = Place::new("").gcs(&gcs.endpoint());
    let _agent = place.agent().await;
    until_complete(&place, &["gs://models/a"]).await;
    until("nobody holds it", async || (place.ask("rm gs://models/a --force").code == Some(0)).then_some(()))
        .await;
    until_complete(&place, &["gs://models/a"]).await;
    until("it is listed as wanted", async || {
        (held(&place, "gs://models/a").await == Some(true)).then_some(())
    })
    .await;
}
