//! Volumes come and go, once, twice, and a hundred at once.

use std::{fs, time::Instant};

use tonic::Code;
use weightd_harness::{FakeGcs, ModelShape, require};
use weightd_proto::csi::{
    NodeGetCapabilitiesRequest, NodeGetInfoRequest, node_client::NodeClient, volume_usage::Unit,
};

use super::{Cluster, ORIGINAL, channel, refused};
use crate::{
    program::until,
    volumes::{SLOW, fuse},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_volume_reads_right_while_it_loads_and_after_and_goes_without_a_trace() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let cluster = Cluster::new(&gcs, &gcs.endpoint(), &ModelShape::demo(), SLOW).await;
    let _agent = cluster.node.place.agent().await;
    let _driver = cluster.driver(&[]).await;
    let began = Instant::now();
    for _ in 0..3 {
        cluster.publish("one", &ORIGINAL).await.unwrap();
    }
    eprintln!("published three times in {:?}", began.elapsed());
    assert_eq!(cluster.mounts(), 1, "one mount, however often it was asked for");
    assert_eq!(cluster.serving("one").unwrap().1, "loading");
    let stats = cluster.stats("one").await.unwrap().usage;
    let size = i64::try_from(cluster.node.model.file_bytes().unwrap()).unwrap();
    let files = i64::try_from(cluster.node.model.files.len()).unwrap();
    let bytes = stats.iter().find(|usage| usage.unit() == Unit::Bytes).unwrap();
    let inodes = stats.iter().find(|usage| usage.unit() == Unit::Inodes).unwrap();
    assert_eq!((bytes.total, bytes.available, inodes.total, inodes.used), (size, 0, files, files));
    assert!(bytes.used < size, "it still loads");
    assert!(cluster.is_right("one"));
    until("it is complete", async || (cluster.serving("one")?.1 == "complete").then_some(())).await;
    let stats = cluster.stats("one").await.unwrap().usage;
    assert_eq!(stats.iter().find(|usage| usage.unit() == Unit::Bytes).unwrap().used, size);

    // Another pod has it from the store; neither may write, whatever kubelet says of that.
    cluster.publish("two", &ORIGINAL).await.unwrap();
    assert_eq!(cluster.serving("two").unwrap().0, "bind");
    assert!(cluster.is_right("two") && cluster.is_right("one"));
    for pod in ["one", "two"] {
        let error = fs::write(cluster.target(pod).join("config.json"), "x").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    }
    for pod in ["two", "one", "two", "one", "never"] {
        cluster.unpublish(pod).await.unwrap();
        assert!(!cluster.target(pod).exists());
    }
    assert_eq!(cluster.mounts(), 0);
    assert_eq!(cluster.stats("one").await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn kubelet_is_told_what_the_driver_is() {
    let gcs = require!(FakeGcs::start().await);
    let cluster = Cluster::new(&gcs, &gcs.endpoint(), &ModelShape::tiny(), "").await;
    let _driver = cluster.driver(&[]).await;
    let info = cluster.identity().get_plugin_info(weightd_proto::csi::GetPluginInfoRequest {}).await.unwrap();
    assert_eq!(info.get_ref().name, "csi.weightd.io");
    let mut node = NodeClient::new(channel(&cluster.endpoint()));
    assert_eq!(node.node_get_info(NodeGetInfoRequest {}).await.unwrap().get_ref().node_id, "node-1");
    let capabilities = node.node_get_capabilities(NodeGetCapabilitiesRequest {}).await.unwrap();
    assert_eq!(capabilities.get_ref().capabilities.len(), 1);
    assert_eq!(cluster.http("/live").unwrap(), (200, "live\n".to_owned()));
    let (_, text) = cluster.http("/metrics").unwrap();
    assert!(text.contains("weightd_csi_calls_total{method=\"NodeGetInfo\",code=\"Ok\"} 1"), "{text}");
    assert!(text.contains("weightd_csi_call_duration_seconds_count{method=\"NodeGetInfo\"} 1"), "{text}");
    assert!(text.contains("weightd_csi_agent_reachable 0"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_pods_at_once_get_one_complete_model() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let cluster = Cluster::new(&gcs, &gcs.endpoint(), &ModelShape::tiny(), "").await;
    let _agent = cluster.node.place.agent().await;
    let _driver = cluster.driver(&[]).await;
    cluster.node.place.ask(&format!("prefetch {} --layout original", super::SOURCE)).done();
    let pods: Vec<String> = (0..100).map(|at| format!("pod-{at}")).collect();
    let began = Instant::now();
    let published = futures::future::join_all(pods.iter().map(|pod| cluster.publish(pod, &ORIGINAL))).await;
    eprintln!("100 volumes in {:?}", began.elapsed());
    published.into_iter().for_each(|outcome| outcome.unwrap());
    assert_eq!(cluster.mounts(), 100);
    assert!(pods.iter().step_by(9).all(|pod| cluster.is_right(pod)));
    // Half of them are asked for again while all go: whatever the order, each target has one thing done at a time.
    let going = futures::future::join_all(pods.iter().map(|pod| cluster.unpublish(pod)));
    let again = futures::future::join_all(pods.iter().step_by(2).map(|pod| cluster.publish(pod, &ORIGINAL)));
    let (gone, again) = tokio::join!(going, again);
    gone.into_iter().chain(again).for_each(|outcome| outcome.unwrap());
    let gone = futures::future::join_all(pods.iter().map(|pod| cluster.unpublish(pod))).await;
    gone.into_iter().for_each(|outcome| outcome.unwrap());
    assert_eq!(cluster.mounts(), 0);
    assert!(pods.iter().all(|pod| !cluster.target(pod).exists()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_not_there_is_named() {
    let gcs = require!(FakeGcs::start().await);
    let cluster = Cluster::new(&gcs, &gcs.endpoint(), &ModelShape::tiny(), "").await;
    let _agent = cluster.node.place.agent().await;
    let _driver = cluster.driver(&[]).await;
    let outcome = cluster.publish("one", &[("source", "gs://models/none")]).await;
    refused(outcome, Code::NotFound, &["gs://models/none"]);
    assert_eq!(cluster.mounts(), 0);
    assert!(!cluster.target("one").exists());
    cluster.unpublish("one").await.unwrap();
}
