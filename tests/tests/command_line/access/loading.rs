//! Fetching goes on as someone who is there, and pauses when nobody is.

use std::{fs::File, time::Duration};

use weightd_harness::{FakeGcs, ModelShape, require};

use super::{BUCKET, Cluster, NODE, READER, STRANGER};
use crate::{
    program::until,
    volumes::{SOURCE, fuse},
};

/// A model of 200 MB takes a dozen seconds.
const SLOW: &str = "[fetch]\nbandwidth = \"16MiB/s\"\nrange = \"8MiB\"\nmax_requests = 4\nmin_requests = 1";

fn nobody_was_the_node(cluster: &Cluster) {
    assert!(!cluster.guard.asked().contains(&NODE.to_owned()), "the node asked for a pod");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_that_expires_pauses_fetching_and_a_new_one_goes_on() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let cluster = Cluster::new(&gcs, &ModelShape::demo(), SLOW).await;
    cluster.guard.grant(READER, BUCKET);
    cluster.guard.set_life(Duration::from_secs(5));
    let _agent = cluster.place.agent().await;
    cluster.publish("first", "reader").await.unwrap();
    cluster.until_paused().await;
    let events = cluster.events().await;
    assert!(events.contains("no pod that may read gs://models/demo is there to ask with"), "{events}");
    cluster.guard.set_life(Duration::from_secs(3600));
    // What kubelet does with requiresRepublish.
    cluster.publish("first", "reader").await.unwrap();
    cluster.until_complete().await;
    cluster.assert_right("first").await;
    nobody_was_the_node(&cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_agent_waits_for_kubelet_and_does_not_ask_as_the_node() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let cluster = Cluster::new(&gcs, &ModelShape::demo(), "").await;
    let keeper = cluster.place.at("keeper.sock");
    let more = format!("{SLOW}\n[volumes]\nkeeper = {keeper:?}");
    let cluster = cluster.with(&more);
    let _keeper = cluster.keeper().await;
    cluster.guard.grant(READER, BUCKET);
    let mut agent = cluster.place.agent().await;
    cluster.publish("first", "reader").await.unwrap();
    until("something is here", async || (cluster.present().await > 16 << 20).then_some(())).await;
    agent.kill();
    cluster.guard.forget();
    let _agent = cluster.place.agent().await;
    cluster.until_paused().await;
    assert!(cluster.guard.asked().is_empty(), "{:?}", cluster.guard.asked());
    cluster.publish("first", "reader").await.unwrap();
    cluster.until_complete().await;
    cluster.assert_right("first").await;
    nobody_was_the_node(&cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_ends_with_its_volume_and_fetching_goes_on_as_another_pod() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let cluster = Cluster::new(&gcs, &ModelShape::demo(), SLOW).await;
    cluster.guard.grant(READER, BUCKET);
    cluster.guard.grant(STRANGER, BUCKET);
    let _agent = cluster.place.agent().await;
    cluster.publish("first", "reader").await.unwrap();
    cluster.publish("second", "stranger").await.unwrap();
    cluster.unpublish("second").await;
    until_only_the_reader_asks(&cluster).await;
    cluster.guard.revoke(READER, BUCKET);
    cluster.until_paused().await;
    assert!(cluster.events().await.contains("the origin refused"), "{}", cluster.events().await);
    cluster.publish("third", "stranger").await.unwrap();
    cluster.until_complete().await;
    cluster.assert_right("third").await;
    cluster.assert_right("first").await;
    nobody_was_the_node(&cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_operator_asks_for_is_read_as_the_node() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let cluster = Cluster::new(&gcs, &ModelShape::tiny(), "").await;
    let _agent = cluster.place.agent().await;
    let target = cluster.place.at("by-hand");
    cluster.place.ask(&format!("mount {SOURCE} {} --layout original --wait", target.display())).done();
    cluster.place.ask(&format!("prefetch {SOURCE} --layout aligned")).done();
    assert!(cluster.guard.asked().iter().all(|who| who == NODE), "{:?}", cluster.guard.asked());
    let below = cluster.target("by-hand");
    cluster
        .place
        .ask(&format!("mount {SOURCE} {}", below.display()))
        .failed(64, &["is a volume of a pod's", "nobody said which pod's"]);
}

/// Waits until fetching goes on, and nobody asks but the reader. What was under way when others ended may still be asked for.
async fn until_only_the_reader_asks(cluster: &Cluster) {
    until("only those ask who are there", async || {
        cluster.guard.forget();
        let more = cluster.present().await + (8 << 20);
        until("fetching goes on", async || (cluster.present().await > more).then_some(())).await;
        cluster.guard.asked().iter().all(|who| who == READER).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_operator_left_open_is_not_fetched_as_the_node_for_a_pod() {
    require!(fuse());
    for pod_comes_first in [false, true] {
        let gcs = require!(FakeGcs::start().await);
        let cluster = Cluster::new(&gcs, &ModelShape::demo(), SLOW).await;
        cluster.guard.grant(READER, BUCKET);
        let _agent = cluster.place.agent().await;
        if pod_comes_first {
            cluster.publish("first", "reader").await.unwrap();
        }
        let target = cluster.place.at("by-hand");
        cluster.place.ask(&format!("mount {SOURCE} {} --layout original", target.display())).done();
        let _open = File::open(target.join("config.json")).unwrap();
        cluster.place.ask(&format!("umount {}", target.display())).done();
        if !pod_comes_first {
            cluster.guard.forget();
            until("it is fetched on as the node", async || {
                cluster.guard.asked().contains(&NODE.to_owned()).then_some(())
            })
            .await;
            cluster.publish("first", "reader").await.unwrap();
        }
        until_only_the_reader_asks(&cluster).await;
        // The file is still open, and nobody is there who may read.
        cluster.guard.forget();
        cluster.guard.revoke(READER, BUCKET);
        cluster.until_paused().await;
        assert!(!cluster.guard.asked().contains(&NODE.to_owned()), "{:?}", cluster.guard.asked());
    }
}
