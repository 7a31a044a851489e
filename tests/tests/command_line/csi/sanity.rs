//! The conformance tests of CSI drivers, by the people who wrote the interface.

use std::{collections::BTreeMap, fs, process::Command};

use serde_json::Value;
use weightd_harness::{FakeGcs, ModelShape, csi_sanity, require};

use super::{Cluster, SOURCE};
use crate::{program::Ended, volumes::fuse};

/// Specs that pass. A change of this, or of the list below, wants a look at the report.
const PASSED: usize = 32;

/// Specs that are skipped, by what the driver does not have, and says so.
const SKIPPED: [(&str, usize); 18] = [
    // Nothing is attached to nodes, or staged on them: a volume is one mount.
    ("Controller Publish, UnpublishVolume not supported", 2),
    ("ControllerPublishVolume not supported", 7),
    ("ControllerUnpublishVolume not supported", 1),
    ("NodeStageVolume not supported", 3),
    ("NodeUnstageVolume not supported", 2),
    // A model has the size it has, and is what it is.
    ("ControllerExpandVolume not supported", 3),
    ("NodeExpandVolume not supported", 4),
    ("ControllerModifyVolume not supported", 6),
    ("Modify Volume not supported", 1),
    ("Modify volume not supported", 1),
    ("GetCapacity not supported", 1),
    // Volumes cannot be written, so there is nothing to take snapshots or clones of.
    ("CreateSnapshot not supported", 5),
    ("DeleteSnapshot not supported", 3),
    ("ListSnapshots not supported", 7),
    ("Snapshot not supported", 2),
    ("Volume Cloning not supported", 2),
    ("GroupControllerService not supported", 6),
    // The controller keeps no list.
    ("ListVolumes not supported", 3),
];

#[tokio::test(flavor = "multi_thread")]
async fn the_driver_does_what_the_interface_says() {
    require!(fuse());
    let sanity = require!(csi_sanity());
    let gcs = require!(FakeGcs::start().await);
    let cluster = Cluster::new(&gcs, &gcs.endpoint(), &ModelShape::tiny(), "").await;
    let _agent = cluster.node.place.agent().await;
    let _driver = cluster.driver(&[]).await;
    let place = &cluster.node.place;
    let parameters = place.at("parameters.yaml");
    fs::write(&parameters, format!("source: {SOURCE}\n")).unwrap();
    let mut command = Command::new(sanity);
    let flag = |name: &str, value: &std::path::Path| format!("--csi.{name}={}", value.display());
    command.arg(format!("--csi.endpoint=unix://{}", cluster.endpoint().display()));
    command.arg(flag("mountdir", &place.at("kubelet/sanity/mount")));
    command.arg(flag("stagingdir", &place.at("kubelet/sanity/staging")));
    let report = place.at("report.json");
    command.arg(flag("testvolumeparameters", &parameters));
    command.arg(format!("--ginkgo.json-report={}", report.display()));
    fs::create_dir_all(place.at("kubelet/sanity")).unwrap();
    let ended = tokio::task::spawn_blocking(move || Ended::of(&mut command)).await.unwrap();
    assert_eq!(ended.code, Some(0), "{}{}", ended.data, ended.words);
    let report: Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    let specs = report[0]["SpecReports"].as_array().unwrap();
    let in_state = |state: &str| specs.iter().filter(|spec| spec["State"] == state).collect::<Vec<_>>();
    let mut skipped: BTreeMap<&str, usize> = BTreeMap::new();
    for spec in in_state("skipped") {
        *skipped.entry(spec["Failure"]["Message"].as_str().unwrap()).or_default() += 1;
    }
    eprintln!("{} passed, skipped: {skipped:#?}", in_state("passed").len());
    assert_eq!(skipped, BTreeMap::from(SKIPPED));
    assert_eq!((in_state("passed").len(), in_state("failed").len()), (PASSED, 0));
    assert_eq!(cluster.mounts(), 0);
}
