//! What a new agent makes of volumes that were in the middle of something.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    time::Duration,
};

use tokio::time::timeout;
use weightd_harness::{FakeGcs, Fault, FaultProxy, ModelShape, require};

use super::{Node, SOURCE, fuse};
use crate::program::{Running, until};

/// A model that loads for seconds, behind a proxy, with a keeper.
async fn node(gcs: &FakeGcs, proxy: &FaultProxy) -> (Node, Running) {
    let node = Node::new(gcs, &proxy.url(), &ModelShape::demo(), "").await;
    let more = format!(
        "[fetch]\nattempts = 2\nbandwidth = \"24MiB/s\"\n[volumes]\nkeeper = {:?}\nread_timeout = \"3s\"\n\
         read_ahead = \"1MiB\"",
        node.place.at("keeper.sock")
    );
    node.place.configure(&node.place.at("store"), &more);
    let keeper = node.place.keeper(&[]).await;
    (node, keeper)
}

/// Ends an agent in order, so that what it brought is recorded.
async fn end(mut agent: Running) {
    agent.signal("TERM");
    agent.ended().await;
}

/// Reads the beginning of a file, and waits until the chunk that it lies in is written.
async fn read_first(node: &Node, name: &str) -> File {
    let file = File::open(node.target().join(name)).unwrap();
    read(&file, 0).await.unwrap();
    until("its chunk is written", async || {
        let objects = node.place.ask(&format!("get {SOURCE} -o json")).json()["objects"].clone();
        let object = objects.as_array().unwrap().iter().find(|object| object["path"] == name).cloned();
        (object.unwrap()["present_bytes"].as_u64().unwrap() > 1 << 20).then_some(())
    })
    .await;
    file
}

async fn read(file: &File, offset: u64) -> std::io::Result<usize> {
    let file = file.try_clone().unwrap();
    let read = tokio::task::spawn_blocking(move || file.read_at(&mut [0; 4096], offset));
    timeout(Duration::from_secs(30), read).await.expect("it does not hang").unwrap()
}

/// Also in the aligned layout, whose lengths were computed from headers that an origin gave.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_here_is_served_although_the_origin_is_gone_and_the_rest_fails_in_time() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let proxy = FaultProxy::start(&gcs.endpoint()).await.unwrap();
    let (node, _keeper) = node(&gcs, &proxy).await;
    let agent = node.place.agent().await;
    node.place.ask(&format!("mount {SOURCE} {}", node.target().display())).done();
    let file = read_first(&node, &node.last_shard()).await;
    let length = file.metadata().unwrap().len();
    end(agent).await;
    proxy.inject("model", u32::MAX, Fault::Status { code: 403, retry_after: None });

    let _agent = node.place.agent().await;
    for name in &node.model.files {
        fs::metadata(node.target().join(name)).unwrap();
    }
    // Further than the kernel has read ahead.
    assert_eq!(read(&file, 6 << 20).await.unwrap(), 4096);
    assert_eq!(read(&file, length - 4096).await.unwrap_err().raw_os_error(), Some(5));
    let events = node.place.ask("mounts -o json").json()["events"].to_string();
    assert!(events.contains("gs://models/demo"), "{events}");
    proxy.clear();
    until("the next read succeeds", async || read(&file, length - 4096).await.ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_that_an_earlier_agent_served_stop_the_volume() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let proxy = FaultProxy::start(&gcs.endpoint()).await.unwrap();
    let (node, _keeper) = node(&gcs, &proxy).await;
    let name = node.last_shard();
    let agent = node.place.agent().await;
    proxy.inject(&name, u32::MAX, Fault::Flip(1 << 20));
    node.mount("");
    let file = read_first(&node, &name).await;
    end(agent).await;
    proxy.clear();

    // Nobody reads while this agent brings the rest, and finds that what came first is wrong.
    let _agent = node.place.agent().await;
    until("the volume is stopped", async || {
        let events = node.place.ask("mounts -o json").json()["events"].to_string();
        events.contains("did not match its checksum").then_some(())
    })
    .await;
    assert_eq!(read(&file, 0).await.unwrap_err().raw_os_error(), Some(5));
    // The kernel keeps one state of a file for all volumes of it.
    let second = node.place.at("second");
    let refused =
        node.place.ask(&format!("mount {SOURCE} {} --layout original --mode fuse", second.display()));
    refused.failed(75, &["did not match its checksum", "unmount all volumes"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_outlived_its_agent_and_its_volume_is_read_to_its_end() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let proxy = FaultProxy::start(&gcs.endpoint()).await.unwrap();
    let (node, _keeper) = node(&gcs, &proxy).await;
    let name = node.last_shard();
    let mut agent = node.place.agent().await;
    node.mount("");
    let (early, origin) = (File::open(node.target().join(&name)).unwrap(), node.model.directory.join(&name));
    agent.kill();
    let _agent = node.place.agent().await;
    // One that this agent opens and closes must not be taken for the one that is still open.
    drop(File::open(node.target().join(&name)).unwrap());
    node.place.ask(&format!("umount {}", node.target().display())).done();
    let early = tokio::task::spawn_blocking(move || {
        let mut bytes = vec![0; usize::try_from(early.metadata().unwrap().len()).unwrap()];
        early.read_exact_at(&mut bytes, 0).map(|()| bytes)
    });
    let bytes = timeout(Duration::from_secs(60), early).await.expect("it does not hang").unwrap();
    assert!(bytes.expect("its reader sees no error") == fs::read(origin).unwrap());
    // And nothing is held once it is closed.
    until("the snapshot can be removed", async || {
        let removed = node.place.ask(&format!("rm {SOURCE}"));
        (removed.code == Some(0)).then_some(())
    })
    .await;
}
