//! What pod authors write is not believed.

use std::collections::HashMap;

use tonic::Code;
use weightd_harness::{FakeGcs, ModelShape, require};
use weightd_proto::csi::{
    VolumeCapability,
    node_client::NodeClient,
    volume_capability::{AccessType, BlockVolume, MountVolume, access_mode::Mode},
};

use super::{Cluster, ORIGINAL, capability, channel, refused};
use crate::volumes::fuse;

#[tokio::test(flavor = "multi_thread")]
async fn hostile_attributes_are_refused_with_what_may_be_written() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let cluster = Cluster::new(&gcs, &gcs.endpoint(), &ModelShape::tiny(), "").await;
    let _agent = cluster.node.place.agent().await;
    let _driver = cluster.driver(&[]).await;
    cluster.publish("good", &[ORIGINAL[0], ("wait", "ready")]).await.unwrap();
    // A complete snapshot, whose id or beginning of one the agent would take from an operator.
    let shown = cluster.node.place.ask("mounts -o json").json();
    let id = shown["volumes"][0]["snapshot"].as_str().unwrap().to_owned();
    let long = format!("gs://models/{}", "x".repeat(4000));
    for (key, value, told) in [
        ("source", id.as_str(), "must be a URI"),
        ("source", &id[..12], "must be a URI"),
        ("source", "/etc", "must be a URI"),
        ("source", "gs://models/../secret", ".. in it"),
        ("source", "file:///srv/%2e%2e/etc", ".. in it"),
        ("source", "gs://models/x\nforged: event", "control character"),
        ("source", "https://me:hunter2@host.example/m", "nodePublishSecretRef"),
        ("source", "nonsense://x", "nonsense://"),
        ("source", long.as_str(), "2048"),
        ("identity", "node", "\"identity\" is not known"),
        ("mode", "fuse", "\"mode\" is not known"),
        ("layout", "packed", "aligned or original"),
        ("wait", "110", "started or ready"),
        ("pin", "maybe", "\"true\" or \"false\""),
        ("csi.storage.k8s.io/serviceAccount.name", "admin", "podInfoOnMount"),
        ("csi.storage.k8s.io/pod.uid", "another", "podInfoOnMount"),
        ("csi.storage.k8s.io/serviceAccount.tokens", "s3cr3t", "tokens"),
    ] {
        let message = refused(cluster.publish("bad", &[(key, value)]).await, Code::InvalidArgument, &[told]);
        assert!(!message.contains("hunter2") && !message.contains("s3cr3t"), "{message}");
    }
    assert_eq!(cluster.mounts(), 1, "nothing was mounted for any of them");
    let log = cluster.log();
    assert!(!log.contains("hunter2") && !log.contains("s3cr3t"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_and_capabilities_that_cannot_be_are_refused() {
    let gcs = require!(FakeGcs::start().await);
    let cluster = Cluster::new(&gcs, &gcs.endpoint(), &ModelShape::tiny(), "").await;
    let _driver = cluster.driver(&[]).await;
    let mut client = NodeClient::new(channel(&cluster.endpoint()));
    for target in
        ["/etc", "relative", "", &format!("{}/../../../../../../x", cluster.target("one").display())]
    {
        let mut request = cluster.request("one", &[]);
        target.clone_into(&mut request.target_path);
        let outcome = client.node_publish_volume(request).await.map(drop);
        refused(outcome, Code::InvalidArgument, &["target"]);
    }
    let reader = capability(Mode::MultiNodeReaderOnly);
    let block = VolumeCapability { access_type: Some(AccessType::Block(BlockVolume {})), ..reader.clone() };
    let mount = MountVolume { mount_flags: vec!["rw".to_owned()], ..MountVolume::default() };
    let flags = VolumeCapability { access_type: Some(AccessType::Mount(mount)), ..reader };
    let writers = capability(Mode::MultiNodeMultiWriter);
    for (capability, told) in [(block, "block device"), (flags, "\"rw\""), (writers, "ReadOnlyMany")] {
        let mut request = cluster.request("one", &[]);
        request.volume_capability = Some(capability);
        let outcome = client.node_publish_volume(request).await.map(drop);
        refused(outcome, Code::InvalidArgument, &[told]);
    }
    let mut request = cluster.request("one", &[]);
    request.volume_context = HashMap::new();
    refused(
        client.node_publish_volume(request).await.map(drop),
        Code::InvalidArgument,
        &["\"source\" is missing"],
    );
}
