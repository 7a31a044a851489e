//! Bytes that change on disk behind the agent's back, and a scrub that finds them although nobody reads them.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::PathBuf,
};

use serde_json::Value;
use weightd_harness::{FakeGcs, ModelShape, require};

use crate::{
    daemon::get,
    place::Place,
    program::until,
    volumes::{Node, SOURCE, fuse},
};

/// As fast as the disk, so that nobody has to wait for it.
const FAST: &str = "scrub_rate = \"100GiB/s\"\n[fetch]\nattempts = 2";

/// Flips a bit in the last shard where it lies in the store. Gives its name, and the blob's file.
fn rot(node: &Node) -> (String, PathBuf) {
    let name = node.model.files.iter().rfind(|name| name.ends_with(".safetensors")).unwrap().clone();
    let snapshot = node.place.ask(&format!("get {SOURCE} -o json")).json();
    let objects = snapshot["objects"].as_array().unwrap();
    let blob = objects.iter().find(|object| object["path"] == *name).unwrap()["blob"].as_str().unwrap();
    let path = node.place.at("store/blobs").join(&blob[..2]).join(blob);
    let at = fs::metadata(&path).unwrap().len() - 5000;
    let (mut byte, file) = ([0], File::options().read(true).write(true).open(&path).unwrap());
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    file.sync_all().unwrap();
    (name, path)
}

fn metric(place: &Place, name: &str) -> u64 {
    let text = get(place, "/metrics").unwrap().1;
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("weightd_fetch_{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

async fn event(node: &Node, name: &str) -> String {
    let is_it = |event: &Value| event["path"] == *name;
    until("there is an event", async || {
        let answer = node.place.ask("mounts -o json").json();
        let event = answer["events"].as_array().unwrap().iter().find(|event| is_it(event)).cloned();
        event.map(|event| event["message"].as_str().unwrap().to_owned())
    })
    .await
}

async fn mounted(gcs: &FakeGcs) -> Node {
    Node::new(gcs, &gcs.endpoint(), &ModelShape::small(), FAST).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_is_mended_although_nobody_reads_it() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let node = mounted(&gcs).await;
    let _agent = node.place.agent().await;
    node.mount("--mode bind");
    let (name, blob) = rot(&node);
    until("it is repaired", async || (metric(&node.place, "scrub_repaired_chunks_total") == 1).then_some(()))
        .await;
    let right = fs::read(node.model.directory.join(&name)).unwrap();
    assert!(fs::read(blob).unwrap() == right && fs::read(node.target().join(&name)).unwrap() == right);
    assert_eq!(metric(&node.place, "scrub_bad_chunks_total"), 1);
    assert!(metric(&node.place, "scrubbed_chunks_total") > 0);
    let event = event(&node, &name).await;
    assert!(event.contains("rotted on disk and were fetched again"), "{event}");
    assert_eq!(node.volume(), ("bind".to_owned(), "complete".to_owned()));
    until("a round ends", async || (metric(&node.place, "scrub_round_end_time_seconds") > 0).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_origin_rot_is_told_and_the_snapshot_is_not_complete() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let node = mounted(&gcs).await;
    let _agent = node.place.agent().await;
    node.mount("--mode bind");
    drop(gcs);
    let (name, _) = rot(&node);
    let event = event(&node, &name).await;
    assert!(event.contains("could not be fetched again") && event.contains(&name), "{event}");
    let listed = node.place.ask("ls -o json").json();
    assert_eq!(listed[0]["state"], "interrupted", "{listed}");
    let log = fs::read_to_string(node.place.at("log")).unwrap();
    assert!(log.contains("rotted on disk") && log.contains(&name), "{log}");
    let counted = |name| metric(&node.place, name);
    assert_eq!((counted("scrub_bad_chunks_total"), counted("scrub_repaired_chunks_total")), (1, 0));
}
