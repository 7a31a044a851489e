//! What the node does for no pod unless the operator says so.

use std::fs;

use weightd_harness::{FakeGcs, ModelShape, StaticFile, StaticServer, require};
use weightd_proto::v1::{self, FailureKind};

use super::{BUCKET, Cluster, READER, refused};
use crate::volumes::{SOURCE, fuse};

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_pins_only_where_the_operator_lets_pods() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let cluster = Cluster::new(&gcs, &ModelShape::tiny(), "").await;
    cluster.guard.grant(READER, BUCKET);
    let is_pinned =
        async || cluster.client().await.list().await.unwrap().iter().any(|snapshot| snapshot.pinned);
    let pinning = |pod: &str| v1::PublishRequest { pin: true, ..cluster.request(pod, "reader") };
    let mut agent = cluster.place.agent().await;
    let (kind, message) = refused(cluster.ask(pinning("first")).await);
    assert_eq!(kind, FailureKind::NotPermitted);
    for words in [SOURCE, "access.pods_may_pin = true", "leave pin out"] {
        assert!(message.contains(words), "{message}");
    }
    assert!(!cluster.target("first").exists(), "nothing is left of a volume that was refused");
    cluster.publish("first", "reader").await.unwrap();
    // A volume from before the operator said no keeps its credential: kubelet asks for the same again and again.
    cluster.ask(pinning("first")).await.unwrap();
    cluster.until_complete().await;
    assert!(!is_pinned().await);
    cluster.place.ask(&format!("pin {SOURCE}")).done();
    assert!(is_pinned().await, "the operator may");
    cluster.place.ask(&format!("unpin {SOURCE}")).done();
    agent.signal("TERM");
    agent.ended().await;

    cluster.configure("pods_may_pin = true");
    let _agent = cluster.place.agent().await;
    cluster.ask(pinning("second")).await.unwrap();
    assert!(is_pinned().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_pods_may_name_leads_the_node_to_no_other_address_for_them() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let (server, inside) = (StaticServer::start().await.unwrap(), StaticServer::start().await.unwrap());
    inside.put("/secret", StaticFile::new("weights"));
    server.put("/private/secret", StaticFile::new("weights"));
    server.put("/llm/there/w", StaticFile::new("weights"));
    server.redirect("/llm/out/config.json", &format!("{}/secret?token=hunter2", inside.url()));
    server.redirect("/llm/beside/config.json", "/private/secret?token=hunter2");
    server.redirect("/llm/there/config.json", "/llm/there/w");
    let cluster = Cluster::new(&gcs, &ModelShape::tiny(), "").await;
    for identity in ["pod", "node"] {
        cluster.configure(&format!("identity = {identity:?}\nweb = [\"{}/llm\"]", server.url()));
        let _agent = cluster.place.agent().await;
        let publish = async |name: &str| {
            let mut request = cluster.request(&format!("{identity}-{name}"), "reader");
            request.source = format!("{}/llm/{name}", server.url());
            request.wait = true;
            cluster.ask(request).await
        };
        let outside = format!("{}/secret,", inside.url());
        let beside = format!("{}/private/secret,", server.url());
        for (name, to) in [("out", outside), ("beside", beside)] {
            let (kind, message) = refused(publish(name).await);
            assert_eq!(kind, FailureKind::NotPermitted, "{message}");
            for words in [&format!("/llm/{name}"), &format!("it redirects to {to}"), "access.web"] {
                assert!(message.contains(words), "{words} is not in: {message}");
            }
            assert!(!message.contains("hunter2"), "{message}");
        }
        assert!(inside.requests().all().is_empty(), "{:?}", inside.requests().all());
        let is_private = |request: &weightd_harness::Recorded| request.target.contains("private");
        assert!(!server.requests().all().iter().any(is_private), "it was asked for");
        publish("there").await.unwrap();
        let shown = cluster.target(&format!("{identity}-there")).join("config.json");
        assert_eq!(fs::read_to_string(shown).unwrap(), "weights");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_own_sources_are_followed_where_they_lead() {
    let gcs = require!(FakeGcs::start().await);
    let (server, other) = (StaticServer::start().await.unwrap(), StaticServer::start().await.unwrap());
    other.put("/c", StaticFile::new("{}"));
    server.redirect("/m/config.json", &format!("{}/c", other.url()));
    let cluster = Cluster::new(&gcs, &ModelShape::tiny(), "").await;
    let _agent = cluster.place.agent().await;
    let source = format!("{}/m", server.url());
    cluster.place.ask(&format!("prefetch {source}")).done();
    let directory = cluster.place.ask(&format!("path {source}")).done();
    assert_eq!(fs::read_to_string(format!("{}/config.json", directory.trim_end())).unwrap(), "{}");
}
