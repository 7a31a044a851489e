//! Every tensor is what the model has, whatever it comes from, and the origin is asked once.

use weightd_client::handoff::{FailureKind, Request};
use weightd_harness::{FakeGcs, Fault, FaultProxy, ModelShape, require};

use super::{
    FEW, LONG, all, assert_right, listening, node, node_socket, of_source, open, open_source, volume_socket,
    wait,
};
use crate::{
    program::until,
    volumes::{SLOW, fuse},
};

/// Bytes a second, so that a model takes some seconds.
const SLOWLY: u64 = 20_000_000;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_only_at_the_origin_is_downloaded_once_for_all_and_stays_in_the_store() {
    let gcs = require!(FakeGcs::start().await);
    let proxy = FaultProxy::start(&gcs.endpoint()).await.unwrap();
    let (node, _keeper) = node(&gcs, &proxy.url(), &ModelShape::demo(), "").await;
    let _agent = listening(&node).await;
    let sessions = futures::future::join_all((0..4).map(async |_| open_source(&node).await)).await;
    for session in &sessions {
        wait(session, all(session), true).await.unwrap();
        assert_right(session, all(session), &node.model.directory);
    }
    let size = node.model.file_bytes().unwrap();
    let fetched = proxy.bytes();
    // What is wanted now cuts requests for the rest short, and some of their bytes are on the way by then.
    assert!(fetched < size + size / 8, "{fetched} bytes of {size} were fetched by four clients");
    node.place.ask("verify gs://models/demo").done();
    assert!(sessions[0].is_complete() && open_source(&node).await.is_complete());
}

/// Tensors of all kinds: of odd lengths, on odd places, none on 256 bytes in the file.
#[tokio::test(flavor = "multi_thread")]
async fn each_tensor_is_on_256_bytes_in_either_layout_and_also_where_files_have_none_there() {
    require!(fuse());
    let shape = ModelShape { fp8: true, ..ModelShape::small() };
    for layout in ["original", "aligned"] {
        let gcs = require!(FakeGcs::start().await);
        let (node, _keeper) = node(&gcs, &gcs.endpoint(), &shape, "").await;
        let _agent = node.place.agent().await;
        let line = format!("mount gs://models/demo {} --layout {layout}", node.target().display());
        node.place.ask(&line).done();
        // A table whose tensors are elsewhere is refused by the client.
        let session = open(&volume_socket(&node), Request::default()).await.unwrap();
        wait(&session, all(&session), true).await.unwrap();
        assert_right(&session, all(&session), &node.model.directory);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_loads_gives_what_is_wanted_first() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let (node, _keeper) = node(&gcs, &gcs.endpoint(), &ModelShape::demo(), "").await;
    let more = format!("{SLOW}\nkeeper = {:?}", node.place.at("keeper.sock"));
    node.place.configure(&node.place.at("store"), &more);
    let _agent = node.place.agent().await;
    node.mount("");
    let session = open(&volume_socket(&node), Request::default()).await.unwrap();
    assert_eq!(session.source(), "gs://models/demo");
    let last = all(&session).end - 1;
    wait(&session, last..last + 1, false).await.unwrap();
    assert_eq!(node.volume().1, "loading", "it did not wait for all of it");
    assert_right(&session, last..last + 1, &node.model.directory);
    wait(&session, all(&session), true).await.unwrap();
    assert_right(&session, all(&session), &node.model.directory);
    node.until_complete().await;
}

/// What nobody waits for hangs, on every connection that it has, and in every place that a lease has for it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_wanted_does_not_wait_for_what_is_not() {
    let gcs = require!(FakeGcs::start().await);
    let proxy = FaultProxy::start(&gcs.endpoint()).await.unwrap();
    let few = format!("{FEW}\nstall = \"5m\"\ngive_up = \"10m\"");
    let (node, _keeper) = node(&gcs, &proxy.url(), &ModelShape::demo(), &few).await;
    let _agent = listening(&node).await;
    let name = node.last_shard();
    for other in node.model.files.iter().filter(|file| file.ends_with(".safetensors") && **file != name) {
        // Headers are shorter, and what a file has in its last chunk is longer.
        proxy.inject(other, u32::MAX, Fault::Stall { after: 1 << 20, pause: 10 * LONG });
    }
    let session = open_source(&node).await;
    let last = all(&session).end - 1;
    wait(&session, last..last + 1, false).await.unwrap();
    assert_right(&session, last..last + 1, &node.model.directory);
    assert!((0..last / 2).all(|position| !session.is_ready(position, false)), "nothing hung");
}

/// Only of a whole file the origin says what it is, and of the last one by itself the end comes last.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_wanted_verified_comes_with_all_of_its_file_before_others() {
    let gcs = require!(FakeGcs::start().await);
    let proxy = FaultProxy::start(&gcs.endpoint()).await.unwrap();
    let (node, _keeper) = node(&gcs, &proxy.url(), &ModelShape::demo(), FEW).await;
    let _agent = listening(&node).await;
    // What comes before it is known what is wanted is little then.
    proxy.limit(SLOWLY);
    let session = open_source(&node).await;
    let last = all(&session).end - 1;
    wait(&session, last..last + 1, true).await.unwrap();
    assert_right(&session, last..last + 1, &node.model.directory);
    assert!((0..last / 2).any(|position| !session.is_ready(position, false)), "all others came before");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_wanted_is_brought_when_nothing_else_shall_be() {
    let gcs = require!(FakeGcs::start().await);
    let (node, _keeper) = node(&gcs, &gcs.endpoint(), &ModelShape::demo(), "").await;
    let _agent = node.place.agent().await;
    node.place.ask("prefetch gs://models/demo").done();
    let shard = node.last_shard();
    let request = Request {
        source: super::SOURCE.to_owned(),
        files: vec![shard.clone()],
        wanted_only: true,
        ..Request::default()
    };
    let session = open(&node_socket(&node), request).await.unwrap();
    assert_eq!(session.table().files().len(), 1);
    wait(&session, 0..1, false).await.unwrap();
    assert_right(&session, 0..1, &node.model.directory);
    let last = all(&session).end - 1;
    assert!(!session.is_ready(last, false), "nobody wanted it");
    wait(&session, last..last + 1, false).await.unwrap();
    assert_right(&session, last..last + 1, &node.model.directory);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_end_the_lease_with_the_name_of_the_object() {
    let gcs = require!(FakeGcs::start().await);
    let proxy = FaultProxy::start(&gcs.endpoint()).await.unwrap();
    let (node, _keeper) = node(&gcs, &proxy.url(), &ModelShape::demo(), "[fetch]\nrefetches = 0").await;
    let _agent = listening(&node).await;
    let name = node.last_shard();
    proxy.inject(&name, u32::MAX, Fault::Flip(1 << 20));
    let session = open_source(&node).await;
    let failed = wait(&session, all(&session), true).await.unwrap_err();
    assert_eq!(failed.kind(), FailureKind::Corrupt);
    assert!(failed.to_string().contains(&name), "{failed}");
    proxy.clear();
    // Who comes at once may join the transfer that is about to fail.
    let again = until("the model is right", async || {
        let again = open(&node_socket(&node), of_source()).await.ok()?;
        wait(&again, all(&again), true).await.ok().map(|()| again)
    });
    let again = again.await;
    assert_right(&again, all(&again), &node.model.directory);
}
