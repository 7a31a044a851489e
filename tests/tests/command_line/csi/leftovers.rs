//! What processes leave that were killed, and people who mend nodes.

use std::{fs, process::Command};

use tonic::Code;
use weightd_harness::{FakeGcs, ModelShape, require};

use super::{Cluster, ORIGINAL, refused};
use crate::volumes::{SLOW, fuse};

/// A mount that is nobody's volume.
fn mount_something(cluster: &Cluster, pod: &str) {
    let target = cluster.target(pod);
    fs::create_dir_all(&target).unwrap();
    let status = Command::new("mount").args(["-t", "tmpfs", "leftover"]).arg(&target).status().unwrap();
    assert!(status.success());
    fs::write(target.join("stale"), "x").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_of_a_killed_driver_and_a_killed_agent_are_taken_up() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let cluster = Cluster::new(&gcs, &gcs.endpoint(), &ModelShape::demo(), SLOW).await;
    // Without a keeper what loads loses its server: the worst that can be left.
    let mut agent = cluster.node.place.agent().await;
    let mut driver = cluster.driver(&[]).await;
    for pod in ["kept", "gone"] {
        cluster.publish(pod, &ORIGINAL).await.unwrap();
    }
    assert_eq!(cluster.serving("kept").unwrap().1, "loading");
    agent.kill();
    driver.kill();
    assert!(fs::read(cluster.target("kept").join("config.json")).is_err(), "nobody serves it");
    let _agent = cluster.node.place.agent().await;
    let _driver = cluster.driver(&[]).await;
    cluster.publish("kept", &ORIGINAL).await.unwrap();
    assert!(cluster.is_right("kept"));
    for pod in ["gone", "kept"] {
        cluster.unpublish(pod).await.unwrap();
        assert!(!cluster.target(pod).exists());
    }
    assert_eq!(cluster.mounts(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_that_no_agent_knows_go_when_a_volume_comes_or_leaves() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let cluster = Cluster::new(&gcs, &gcs.endpoint(), &ModelShape::tiny(), "").await;
    let _agent = cluster.node.place.agent().await;
    let _driver = cluster.driver(&[]).await;
    mount_something(&cluster, "one");
    cluster.publish("one", &ORIGINAL).await.unwrap();
    assert!(cluster.is_right("one") && !cluster.target("one").join("stale").exists());
    // Over a volume, under it, and twice.
    mount_something(&cluster, "one");
    mount_something(&cluster, "one");
    cluster.unpublish("one").await.unwrap();
    assert!(!cluster.target("one").exists() && cluster.mounts() == 0);

    // A volume of a store that was thrown away.
    cluster.publish("two", &ORIGINAL).await.unwrap();
    let (_, text) = cluster.http("/metrics").unwrap();
    let removed = text.lines().find(|line| line.starts_with("weightd_csi_removed_leftovers_total")).unwrap();
    assert_eq!(removed, "weightd_csi_removed_leftovers_total 3");
    // A volume that is another's is no leftover.
    gcs.place_directory("models", "other", &cluster.node.model.directory).unwrap();
    let other = cluster.publish("two", &[("source", "gs://models/other")]).await;
    refused(other, Code::InvalidArgument, &["unmount it first"]);
    assert!(cluster.is_right("two"));
    cluster.unpublish("two").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_of_another_store_is_replaced() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let cluster = Cluster::new(&gcs, &gcs.endpoint(), &ModelShape::tiny(), "").await;
    let mut agent = cluster.node.place.agent().await;
    let _driver = cluster.driver(&[]).await;
    let ready = [ORIGINAL[0], ("wait", "ready")];
    for pod in ["one", "two"] {
        cluster.publish(pod, &ready).await.unwrap();
    }
    agent.signal("TERM");
    agent.ended().await;
    cluster.node.place.configure(&cluster.node.place.at("store2"), "");
    let _agent = cluster.node.place.agent().await;
    cluster.publish("one", &ready).await.unwrap();
    assert!(cluster.is_right("one"));
    assert_eq!(cluster.serving("one").unwrap().0, "bind");
    for pod in ["one", "two"] {
        cluster.unpublish(pod).await.unwrap();
        assert!(!cluster.target(pod).exists());
    }
    assert_eq!(cluster.mounts(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_go_and_files_of_others_stay() {
    let gcs = require!(FakeGcs::start().await);
    let cluster = Cluster::new(&gcs, &gcs.endpoint(), &ModelShape::tiny(), "").await;
    let _agent = cluster.node.place.agent().await;
    let _driver = cluster.driver(&[]).await;
    let target = cluster.target("one");
    fs::create_dir_all(&target).unwrap();
    cluster.unpublish("one").await.unwrap();
    assert!(!target.exists());
    fs::create_dir_all(&target).unwrap();
    fs::write(target.join("mine"), "x").unwrap();
    let told = [target.to_str().unwrap(), "by hand"];
    refused(cluster.unpublish("one").await, Code::Internal, &told);
    assert!(target.join("mine").exists());
}
