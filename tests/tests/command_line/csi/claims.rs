//! Volumes that the controller makes for claims.

use std::collections::HashMap;

use tonic::{Code, Response};
use weightd_harness::{FakeGcs, ModelShape, require};
use weightd_proto::csi::{
    CapacityRange, CreateVolumeRequest, DeleteVolumeRequest, Volume, VolumeContentSource,
    controller_client::ControllerClient, node_client::NodeClient, volume_capability::access_mode::Mode,
};

use super::{Cluster, SOURCE, capability, channel, refused};
use crate::volumes::fuse;

fn claim(name: &str, required_bytes: i64, limit_bytes: i64) -> CreateVolumeRequest {
    let parameters = [("source", SOURCE), ("layout", "original"), ("csi.storage.k8s.io/pvc/name", name)];
    CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: Some(CapacityRange { required_bytes, limit_bytes }),
        volume_capabilities: vec![capability(Mode::MultiNodeReaderOnly)],
        parameters: parameters.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claims_volume_is_the_snapshot_that_its_source_was() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let cluster = Cluster::new(&gcs, &gcs.endpoint(), &ModelShape::tiny(), "").await;
    let _agent = cluster.node.place.agent().await;
    let mut driver = cluster.driver(&[]).await;
    let mut client = ControllerClient::new(channel(&cluster.endpoint()));
    let mut create = async |request| {
        let answer = client.create_volume(request).await.map(Response::into_inner);
        answer.map(|answer| answer.volume.unwrap())
    };
    let volume: Volume = create(claim("pvc-1", 0, 0)).await.unwrap();
    let size = i64::try_from(cluster.node.model.file_bytes().unwrap()).unwrap();
    assert_eq!(volume.capacity_bytes, size);
    let own = [("source", SOURCE), ("layout", "original")];
    let own: HashMap<String, String> = own.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    assert_eq!(volume.volume_context, own);
    assert_eq!(create(claim("pvc-1", 0, 0)).await.unwrap(), volume);
    let other = create(claim("pvc-1", 5, 0)).await.map(drop);
    refused(other, Code::AlreadyExists, &["pvc-1", "delete it first"]);
    refused(create(claim("pvc-2", 0, 10)).await.map(drop), Code::OutOfRange, &[SOURCE]);
    // Claims must ask for some size, which is anybody's guess.
    assert_eq!(create(claim("pvc-3", 1 << 40, 0)).await.unwrap().capacity_bytes, 1 << 40);
    let mut copy = claim("pvc-4", 0, 0);
    copy.volume_content_source = Some(VolumeContentSource::default());
    refused(create(copy).await.map(drop), Code::InvalidArgument, &["\"source\""]);

    // The next driver knows as much.
    driver.kill();
    let _driver = cluster.driver(&[]).await;
    let mut client = ControllerClient::new(channel(&cluster.endpoint()));
    let again = client.create_volume(claim("pvc-1", 0, 0)).await.unwrap().into_inner().volume.unwrap();
    assert_eq!(again, volume);
    let mut request = cluster.request("one", &[]);
    request.volume_id.clone_from(&volume.volume_id);
    request.volume_context.clone_from(&volume.volume_context);
    let provisioner = "storage.kubernetes.io/csiProvisionerIdentity";
    request.volume_context.insert(provisioner.to_owned(), "1-csi.weightd.io".to_owned());
    NodeClient::new(channel(&cluster.endpoint())).node_publish_volume(request).await.unwrap();
    assert!(cluster.is_right("one"));
    cluster.unpublish("one").await.unwrap();
    for id in [volume.volume_id.as_str(), volume.volume_id.as_str(), "another's"] {
        let request = DeleteVolumeRequest { volume_id: id.to_owned(), ..Default::default() };
        client.delete_volume(request).await.unwrap();
    }
}
