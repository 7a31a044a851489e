//! Agents and drivers that are away, end and come back.

use std::time::{Duration, Instant};

use tonic::Code;
use weightd_harness::{FakeGcs, ModelShape, require};
use weightd_proto::csi::ProbeRequest;

use super::{Cluster, ORIGINAL, refused};
use crate::{program::until, volumes::fuse};

#[tokio::test(flavor = "multi_thread")]
async fn without_an_agent_calls_fail_at_once_and_succeed_when_it_is_back() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let cluster = Cluster::new(&gcs, &gcs.endpoint(), &ModelShape::tiny(), "").await;
    let _driver = cluster.driver(&[]).await;
    let socket = cluster.node.place.socket().display().to_string();
    let ready = async || cluster.identity().probe(ProbeRequest {}).await.unwrap().get_ref().ready.unwrap();
    for round in 0..3 {
        let asked = Instant::now();
        let told = [socket.as_str(), "Kubernetes tries again", "DaemonSet weightd"];
        refused(cluster.publish("new", &ORIGINAL).await, Code::Unavailable, &told);
        if round > 0 {
            // It is mounted, and only an agent takes it away; what is not mounted needs none.
            assert!(cluster.is_right("old"), "binds need no agent");
            refused(cluster.unpublish("old").await, Code::Unavailable, &[&socket]);
            assert_eq!(cluster.stats("old").await.unwrap_err().code(), Code::Unavailable);
        }
        cluster.unpublish("new").await.unwrap();
        assert!(!ready().await);
        assert!(asked.elapsed() < Duration::from_secs(20), "at once: {:?}", asked.elapsed());
        let (status, why) = cluster.http("/ready").unwrap();
        assert!(status == 503 && why.contains(&socket), "{status} {why}");

        let mut agent = cluster.node.place.agent().await;
        for pod in ["new", "old"] {
            cluster.publish(pod, &[ORIGINAL[0], ("wait", "ready")]).await.unwrap();
            assert!(cluster.is_right(pod));
        }
        assert!(ready().await);
        assert_eq!(cluster.http("/ready").unwrap(), (200, "ready\n".to_owned()));
        cluster.unpublish("new").await.unwrap();
        agent.kill();
    }
    let _agent = cluster.node.place.agent().await;
    cluster.unpublish("old").await.unwrap();
    assert_eq!(cluster.mounts(), 0);
}

/// Of calls that wait, and calls that the agent is in the middle of.
#[tokio::test(flavor = "multi_thread")]
async fn calls_that_an_agents_end_cuts_off_may_be_repeated() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let more = "[fetch]\nbandwidth = \"1MiB/s\"\nmin_requests = 1\nmax_requests = 1";
    let cluster = Cluster::new(&gcs, &gcs.endpoint(), &ModelShape::small(), more).await;
    let _driver = cluster.driver(&[]).await;
    let mut agent = cluster.node.place.agent().await;
    let waiting = async { cluster.publish("one", &[ORIGINAL[0], ("wait", "ready")]).await };
    let killing = async {
        until("it is waited for", async || cluster.serving("one")).await;
        agent.kill();
    };
    let (outcome, ()) = tokio::join!(waiting, killing);
    refused(outcome, Code::Unavailable, &["Kubernetes tries again"]);
    cluster.node.place.configure(&cluster.node.place.at("store"), "");
    let _agent = cluster.node.place.agent().await;
    cluster.publish("one", &[ORIGINAL[0], ("wait", "ready")]).await.unwrap();
    assert!(cluster.is_right("one"));
    cluster.unpublish("one").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_is_told_to_end_takes_its_sockets_away_and_ends() {
    let gcs = require!(FakeGcs::start().await);
    let cluster = Cluster::new(&gcs, &gcs.endpoint(), &ModelShape::tiny(), "").await;
    let registry = cluster.node.place.at("kubelet/plugins_registry").display().to_string();
    let mut driver = cluster.driver(&["--registration-dir", &registry]).await;
    until("it is to be registered", async || cluster.registration().exists().then_some(())).await;
    let _silent = std::os::unix::net::UnixStream::connect(cluster.endpoint()).unwrap();
    // A second one must not take its place.
    let mut second = crate::program::Running::start(&mut cluster.driver_command(&["--http-address", "off"]));
    assert_eq!(second.ended().await, Some(75));
    driver.signal("TERM");
    assert_eq!(driver.ended().await, Some(0));
    assert!(!cluster.endpoint().exists() && !cluster.registration().exists());
}
