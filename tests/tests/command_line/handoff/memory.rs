//! How much memory there is for tensors, and how long it is theirs.

use weightd_client::handoff::FailureKind;
use weightd_harness::{FakeGcs, ModelShape, require};

use super::{all, assert_right, node, node_socket, of_source, open, open_source, wait};
use crate::{program::until, volumes::metric};

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused_with_the_limit_and_a_way_out() {
    let gcs = require!(FakeGcs::start().await);
    let limit = "[handoff]\nresident_limit = \"100MiB\"";
    let (node, _keeper) = node(&gcs, &gcs.endpoint(), &ModelShape::demo(), limit).await;
    let _agent = node.place.agent().await;
    node.place.ask("prefetch gs://models/demo").done();
    let refused = open(&node_socket(&node), of_source()).await.unwrap_err();
    assert_eq!(refused.kind(), FailureKind::Memory);
    let words = refused.to_string();
    for word in ["gs://models/demo", "100.00 MiB", "handoff.resident_limit", "map the files"] {
        assert!(words.contains(word), "{word}: {words}");
    }
    until("nothing is kept of it", async || {
        (metric(&node.place, "weightd_expose_leases") == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_leases_goes_after_a_while_and_before_that_when_room_is_needed() {
    let gcs = require!(FakeGcs::start().await);
    let limits = "[handoff]\nresident_limit = \"100MiB\"\nlinger = \"2s\"";
    let (node, _keeper) = node(&gcs, &gcs.endpoint(), &ModelShape::small(), limits).await;
    gcs.place_directory("models", "twin", &node.model.directory).unwrap();
    let _agent = node.place.agent().await;
    node.place.ask("prefetch gs://models/demo").done();
    node.place.ask("prefetch gs://models/twin").done();
    let session = open_source(&node).await;
    let twin = || {
        let mut request = of_source();
        request.source = "gs://models/twin".to_owned();
        request
    };
    let refused = open(&node_socket(&node), twin()).await.unwrap_err();
    assert_eq!(refused.kind(), FailureKind::Memory, "what is leased stays: {refused}");
    wait(&session, all(&session), true).await.unwrap();
    assert_right(&session, all(&session), &node.model.directory);
    drop(session);
    let twin = until("the other makes room", async || open(&node_socket(&node), twin()).await.ok()).await;
    wait(&twin, all(&twin), true).await.unwrap();
    drop(twin);
    until("nothing is in memory any more", async || {
        (metric(&node.place, "weightd_expose_resident_bytes") == 0).then_some(())
    })
    .await;
}
