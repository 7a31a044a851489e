//! Origins that fail and bytes that are wrong, as readers of a volume see it.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
};

use serde_json::Value;
use weightd_harness::{FakeGcs, Fault, FaultProxy, ModelShape, require};

use super::{Node, SLOW, fuse};
use crate::program::until;

fn events(node: &Node) -> Vec<Value> {
    node.place.ask("mounts -o json").json()["events"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_origin_is_an_error_with_a_name_and_the_next_read_tries_again() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let proxy = FaultProxy::start(&gcs.endpoint()).await.unwrap();
    let more = "[fetch]\nattempts = 2\nbandwidth = \"16MiB/s\"\n[volumes]\nread_timeout = \"3s\"";
    let node = Node::new(&gcs, &proxy.url(), &ModelShape::demo(), more).await;
    let _agent = node.place.agent().await;
    node.mount("");
    let name = node.last_shard();
    proxy.inject(&name, u32::MAX, Fault::Status { code: 403, retry_after: None });
    let (origin, shown) = (node.model.directory.join(&name), node.target().join(&name));
    let file = File::open(&shown).unwrap();
    let at = file.metadata().unwrap().len() - 4096;
    let mut found = [0; 4096];
    until("reads fail", async || file.read_at(&mut found, at).err()).await;
    assert_eq!(file.read_at(&mut found, at).unwrap_err().raw_os_error(), Some(5));
    let events = events(&node);
    let told = |event: &Value| event["message"].as_str().unwrap().contains(&name);
    assert!(events.iter().any(told), "{events:?}");
    let log = fs::read_to_string(node.place.at("log")).unwrap();
    assert!(log.contains("a read failed") && log.contains(&name), "{log}");

    proxy.clear();
    until("the next read succeeds", async || file.read_at(&mut found, at).ok()).await;
    assert!(fs::read(origin).unwrap().ends_with(&found));
}

/// Of what had come whole, and is brought back without anyone asking for more than its bytes.
#[tokio::test(flavor = "multi_thread")]
async fn what_rotted_while_the_origin_was_away_comes_back_with_it() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let proxy = FaultProxy::start(&gcs.endpoint()).await.unwrap();
    let more = "[fetch]\nattempts = 1\n[volumes]\nread_timeout = \"3s\"";
    let node = Node::new(&gcs, &proxy.url(), &ModelShape::small(), more).await;
    let _agent = node.place.agent().await;
    node.mount("--mode fuse --wait");
    let name = node.last_shard();
    rot(&node, &name, 5000);
    proxy.inject("model", u32::MAX, Fault::Status { code: 403, retry_after: None });
    node.place.ask("verify").failed(65, &["1 chunks are bad"]);
    let shown = node.target().join(&name);
    assert_eq!(fs::read(&shown).unwrap_err().raw_os_error(), Some(5));
    proxy.clear();
    let read = until("the file can be read again", async || fs::read(&shown).ok()).await;
    assert!(read == fs::read(node.model.directory.join(&name)).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_could_not_load_loads_when_it_is_mounted_again() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let proxy = FaultProxy::start(&gcs.endpoint()).await.unwrap();
    let more = "[fetch]\nattempts = 1\nbandwidth = \"16MiB/s\"";
    let node = Node::new(&gcs, &proxy.url(), &ModelShape::demo(), more).await;
    let _agent = node.place.agent().await;
    node.mount("");
    proxy.inject("model", u32::MAX, Fault::Status { code: 403, retry_after: None });
    until("it failed", async || events(&node).pop()).await;
    node.place.ask(&format!("umount {}", node.target().display())).done();
    proxy.clear();
    node.mount("");
    // Nobody reads.
    node.until_complete().await;
}

/// Flips a bit of a file of the model where it is stored.
fn rot(node: &Node, name: &str, at: u64) -> std::path::PathBuf {
    let snapshot = node.place.ask(&format!("get {} -o json", super::SOURCE)).json();
    let objects = snapshot["objects"].as_array().unwrap();
    let object = objects.iter().find(|object| object["path"] == *name).unwrap();
    let blob = object["blob"].as_str().unwrap();
    let path = node.place.at("store/blobs").join(&blob[..2]).join(blob);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    file.sync_all().unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_rots_on_disk_is_brought_again_and_read_right() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let more = "[volumes]\npassthrough = false";
    let node = Node::new(&gcs, &gcs.endpoint(), &ModelShape::small(), more).await;
    let _agent = node.place.agent().await;
    node.mount("--mode fuse --wait");
    assert_eq!(node.volume(), ("fuse".to_owned(), "complete".to_owned()));
    let name = node.last_shard();
    let path = rot(&node, &name, 5000);
    let right = fs::read(node.model.directory.join(&name)).unwrap();
    assert!(fs::read(node.target().join(&name)).unwrap() == right);
    assert!(fs::read(&path).unwrap() == right, "and mended where it lies");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_that_were_served_stop_the_volume() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let proxy = FaultProxy::start(&gcs.endpoint()).await.unwrap();
    let node = Node::new(&gcs, &proxy.url(), &ModelShape::demo(), SLOW).await;
    let name = node.last_shard();
    let _agent = node.place.agent().await;
    // Within the tensors: what a request for the header or for a page brings is shorter.
    proxy.inject(&name, u32::MAX, Fault::Flip(1 << 20));
    node.mount("");
    let file = File::open(node.target().join(&name)).unwrap();
    let mut byte = [0];
    // Read on until the object turns out to be wrong, which it does when the last of it has come.
    let failed = until("the volume is stopped", async || file.read_at(&mut byte, 0).err()).await;
    assert_eq!(failed.raw_os_error(), Some(5));
    proxy.clear();
    let events = events(&node);
    let told = |event: &Value| event["message"].as_str().unwrap().contains("did not match its checksum");
    assert!(events.iter().any(told), "{events:?}");
    // Fetched anew meanwhile: a volume that is mounted now has right bytes.
    node.until_complete().await;
    node.place.ask(&format!("umount {}", node.target().display())).done();
    drop(file);
    node.mount("");
    assert!(
        fs::read(node.target().join(&name)).unwrap() == fs::read(node.model.directory.join(&name)).unwrap()
    );
}
