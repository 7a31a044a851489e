//! Volumes that are to be ready before their pod starts.

use std::time::{Duration, Instant};

use tonic::Code;
use weightd_harness::{FakeGcs, Fault, FaultProxy, ModelShape, require};

use super::{Cluster, ORIGINAL, SOURCE, refused};
use crate::{
    program::until,
    volumes::{SLOW, fuse},
};

const READY: [(&str, &str); 2] = [ORIGINAL[0], ("wait", "ready")];

/// As good as no bandwidth.
const STILL: &str = "[fetch]\nbandwidth = \"1MiB/s\"\nmin_requests = 1\nmax_requests = 1";

#[tokio::test(flavor = "multi_thread")]
async fn the_pod_waits_until_every_byte_is_here_and_then_needs_no_agent() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let cluster = Cluster::new(&gcs, &gcs.endpoint(), &ModelShape::demo(), SLOW).await;
    let mut agent = cluster.node.place.agent().await;
    let _driver = cluster.driver(&["--ready-within", "1"]).await;
    // What kubelet does: it asks again.
    let mut attempts = 0;
    until("it is ready", async || {
        let outcome = cluster.publish("one", &READY).await;
        attempts += 1;
        if outcome.is_ok() {
            return Some(());
        }
        let told =
            [SOURCE, " bytes are here", "wait: ready", "Kubernetes tries again", "the transfer goes on"];
        refused(outcome, Code::DeadlineExceeded, &told);
        None
    })
    .await;
    assert!(attempts > 1, "it took no more than a second");
    assert_eq!(cluster.serving("one").unwrap(), ("bind".to_owned(), "complete".to_owned()));
    assert_eq!(cluster.mounts(), 1);
    cluster.publish("one", &READY).await.unwrap();
    agent.kill();
    assert!(cluster.is_right("one"));
    let _agent = cluster.node.place.agent().await;
    cluster.unpublish("one").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_goes_while_it_waits_is_not_held_up() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let cluster = Cluster::new(&gcs, &gcs.endpoint(), &ModelShape::demo(), STILL).await;
    let _agent = cluster.node.place.agent().await;
    let mut driver = cluster.driver(&[]).await;
    let going = async {
        until("it waits", async || cluster.serving("one")).await;
        let asked = Instant::now();
        cluster.unpublish("one").await.unwrap();
        asked.elapsed()
    };
    let (outcome, took) = tokio::join!(cluster.publish("one", &READY), going);
    refused(outcome, Code::Aborted, &[cluster.target("one").to_str().unwrap()]);
    assert!(took < Duration::from_secs(30), "{took:?}");
    assert!(cluster.mounts() == 0 && !cluster.target("one").exists());

    // The driver's own end does not wait either.
    let ending = async {
        until("it waits", async || cluster.serving("two")).await;
        driver.signal("TERM");
    };
    let (outcome, ()) = tokio::join!(cluster.publish("two", &READY), ending);
    refused(outcome, Code::Unavailable, &["restarted"]);
    assert_eq!(driver.ended().await, Some(0));
    let _driver = cluster.driver(&[]).await;
    cluster.unpublish("two").await.unwrap();
    assert_eq!(cluster.mounts(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_had_is_said_and_nothing_is_left_mounted() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let proxy = FaultProxy::start(&gcs.endpoint()).await.unwrap();
    let more = "[fetch]\nattempts = 1\nbandwidth = \"16MiB/s\"";
    let cluster = Cluster::new(&gcs, &proxy.url(), &ModelShape::demo(), more).await;
    let _agent = cluster.node.place.agent().await;
    let _driver = cluster.driver(&[]).await;
    let name = cluster.node.last_shard();
    let refusing = async {
        until("it waits", async || cluster.serving("one")).await;
        proxy.inject(&name, u32::MAX, Fault::Status { code: 403, retry_after: None });
    };
    let (outcome, ()) = tokio::join!(cluster.publish("one", &READY), refusing);
    refused(outcome, Code::PermissionDenied, &[&name, "permission denied"]);
    assert_eq!(cluster.mounts(), 0, "kubelet takes it that there is none");
    proxy.clear();
    cluster.publish("one", &READY).await.unwrap();
    assert!(cluster.is_right("one"));
    cluster.unpublish("one").await.unwrap();
}
