//! Agents come and go; what is mapped stays right, and what was whole need not be read again.

use std::sync::Arc;

use rustix::net::{RecvFlags, recv};
use tokio::task::spawn_blocking;
use weightd_client::handoff::{Error, Request};
use weightd_harness::{FakeGcs, ModelShape, require};

use super::{LONG, all, assert_right, node, open, open_source, raw, say, volume_socket, wait};
use crate::{
    program::until,
    volumes::{Node, SLOW, fuse, metric},
};

/// How many files the keeper knows as whole.
fn notes(node: &Node) -> usize {
    let keeper = raw(&node.place.at("keeper.sock"));
    say(&keeper, b"list handoff-note/").unwrap();
    let mut answer = [0; 4096];
    let (received, _) = recv(&keeper, answer.as_mut_slice(), RecvFlags::empty()).unwrap();
    String::from_utf8_lossy(&answer[..received]).split(' ').skip(1).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_whole_is_the_next_agents_and_the_socket_of_a_volume_too() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let (node, _keeper) = node(&gcs, &gcs.endpoint(), &ModelShape::small(), "").await;
    let mut agent = node.place.agent().await;
    node.place.ask("prefetch gs://models/demo").done();
    node.mount("");
    let session = open(&volume_socket(&node), Request::default()).await.unwrap();
    wait(&session, all(&session), true).await.unwrap();
    // What is whole is left with the keeper a moment after that.
    let files = session.table().files().len();
    until("the keeper has all of it", async || (notes(&node) == files).then_some(())).await;
    agent.kill();
    assert_right(&session, all(&session), &node.model.directory);
    // While there is no agent, whoever comes waits for the next.
    let waiting = tokio::spawn({
        let socket = volume_socket(&node);
        async move { open(&socket, Request::default()).await.unwrap() }
    });
    let _agent = node.place.agent().await;
    let next = waiting.await.unwrap();
    assert!(next.is_complete());
    let read = metric(&node.place, "weightd_expose_served_chunks_total");
    assert_eq!(read, 1, "nothing is read again but the index, which says which files there are");
    assert_right(&next, all(&next), &node.model.directory);
    let other = open_source(&node).await;
    wait(&other, all(&other), true).await.unwrap();
    assert_right(&other, all(&other), &node.model.directory);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_when_the_agent_is_killed_resumes_with_the_next() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let (node, _keeper) = node(&gcs, &gcs.endpoint(), &ModelShape::demo(), "").await;
    let more = format!("{SLOW}\nkeeper = {:?}", node.place.at("keeper.sock"));
    node.place.configure(&node.place.at("store"), &more);
    let mut agent = node.place.agent().await;
    node.mount("");
    let session = open(&volume_socket(&node), Request::default()).await.unwrap();
    wait(&session, 0..1, false).await.unwrap();
    let waiting = tokio::spawn({
        let session = Arc::clone(&session);
        async move { wait(&session, all(&session), true).await }
    });
    agent.kill();
    let failed = waiting.await.unwrap().unwrap_err();
    assert!(matches!(failed, Error::AgentGone { .. }), "{failed}");
    assert_right(&session, 0..1, &node.model.directory);
    let _agent = node.place.agent().await;
    let old = Arc::clone(&session);
    let next = Arc::new(spawn_blocking(move || old.resume(LONG)).await.unwrap().unwrap());
    wait(&next, all(&next), true).await.unwrap();
    assert_right(&next, all(&next), &node.model.directory);
    assert_right(&session, 0..1, &node.model.directory);
}
