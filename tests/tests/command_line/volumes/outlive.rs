//! Volumes that outlive their agent.

use std::{
    fs::{self, File},
    io::ErrorKind,
    os::unix::fs::FileExt,
    time::Duration,
};

use tokio::time::{sleep, timeout};
use weightd_harness::{FakeGcs, ModelShape, mounts, require};

use super::{Node, fuse, until_listening};
use crate::program::{Running, until};

fn kept(node_socket: &str, agent_timeout: &str) -> String {
    format!(
        "[fetch]\nbandwidth = \"24MiB/s\"\n[volumes]\nkeeper = {node_socket:?}\n\
         agent_timeout = \"{agent_timeout}\"\nread_ahead = \"1MiB\""
    )
}

pub(super) async fn node_with_keeper(
    gcs: &FakeGcs,
    shape: &ModelShape,
    agent_timeout: &str,
) -> (Node, Running) {
    let node = Node::new(gcs, &gcs.endpoint(), shape, "").await;
    let socket = node.place.at("keeper.sock");
    node.place.configure(&node.place.at("store"), &kept(socket.to_str().unwrap(), agent_timeout));
    let keeper = node.place.keeper(&[]).await;
    (node, keeper)
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_get_an_error_when_no_agent_comes_and_bytes_again_when_one_does() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let (node, _keeper) = node_with_keeper(&gcs, &ModelShape::demo(), "1s").await;
    let mut agent = node.place.agent().await;
    node.mount("");
    let name = node.model.files.iter().rfind(|name| name.ends_with(".safetensors")).unwrap();
    let (origin, shown) = (node.model.directory.join(name), node.target().join(name));
    let file = File::open(&shown).unwrap();
    agent.kill();
    let end = file.metadata().unwrap().len() - 5000;
    let read = tokio::task::spawn_blocking(move || (file.read_at(&mut [0; 4096], end), file));
    let (read, file) = timeout(Duration::from_secs(30), read).await.expect("it does not hang").unwrap();
    assert_eq!(read.unwrap_err().raw_os_error(), Some(5));
    assert_eq!(fs::read(node.target().join("none")).unwrap_err().raw_os_error(), Some(5));

    let _agent = node.place.agent().await;
    let mut found = [0; 4096];
    until("the agent has taken over", async || file.read_at(&mut [0; 1], 0).ok()).await;
    assert_eq!(file.read_at(&mut found, end).unwrap(), 4096);
    assert!(fs::read(origin).unwrap()[end as usize..][..4096] == found);
}

/// An agent that is told to end while others ask it to mount: it has given its volumes up and must not take them away.
#[tokio::test(flavor = "multi_thread")]
async fn mounts_under_way_when_an_agent_ends_cost_no_volume() {
    const LANES: usize = 50;
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let (node, _keeper) = node_with_keeper(&gcs, &ModelShape::tiny(), "60s").await;
    let mut agent = node.place.agent().await;
    node.mount("--mode fuse --wait");
    let name = &node.model.files[0];
    let file = File::open(node.target().join(name)).unwrap();
    let client = weightd_client::Client::connect(&node.place.socket()).await.unwrap();
    let publish = async |lane: usize, number: usize| {
        let target = node.place.at(&format!("t/{lane}/{number}"));
        let request = weightd_proto::v1::PublishRequest {
            source: super::SOURCE.to_owned(),
            target_path: target.display().to_string(),
            mode: weightd_proto::v1::VolumeMode::Fuse.into(),
            layout: weightd_proto::v1::Layout::Original.into(),
            ..Default::default()
        };
        client.publish(request).await.is_ok()
    };
    // Until the agent takes no more, so that some are under way when it ends.
    let publishing = (0..LANES).map(async |lane| {
        let mut number = 0;
        while publish(lane, number).await {
            number += 1;
        }
    });
    let publishing = futures::future::join_all(publishing);
    let ending = async {
        let mounted = || mounts::below(&node.place.at("t"));
        until("the first is mounted", async || mounted().pop()).await;
        agent.signal("TERM");
        agent.ended().await
    };
    tokio::join!(publishing, ending);
    assert_eq!(mounts::volumes_below(&node.target()).len(), 1);

    let _agent = node.place.agent().await;
    let shown = tokio::task::spawn_blocking({
        let path = node.target().join(name);
        move || (file.read_at(&mut [0; 4096], 0), fs::read(path))
    });
    let (early, whole) = timeout(Duration::from_secs(60), shown).await.expect("it does not hang").unwrap();
    assert_eq!(early.unwrap(), 4096);
    assert!(whole.unwrap() == fs::read(node.model.directory.join(name)).unwrap());
}

/// The kernel knows such files by numbers that stand for complete blobs, and nobody told it to forget them.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_was_complete_and_went_without_an_agent_can_load_anew() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let (node, _keeper) = node_with_keeper(&gcs, &ModelShape::demo(), "60s").await;
    let mut agent = node.place.agent().await;
    node.mount("--mode fuse --wait");
    // Some are opened, of the others only the names are known.
    node.until_passed_through(&node.model.files[..1]).await;
    for name in &node.model.files[1..] {
        fs::metadata(node.target().join(name)).unwrap();
    }
    agent.kill();
    mounts::remove_below(&node.target());
    let _agent = node.place.agent().await;
    node.place.ask(&format!("rm {}", super::SOURCE)).done();
    node.mount("");
    // On a busy machine it may not have begun yet.
    until("it loads, or this shows nothing", async || (node.volume().1 == "loading").then_some(())).await;
    for name in &node.model.files {
        let read = fs::read(node.target().join(name)).unwrap();
        assert!(read == fs::read(node.model.directory.join(name)).unwrap(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_without_an_agent_can_be_unmounted() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let (node, _keeper) = node_with_keeper(&gcs, &ModelShape::demo(), "60s").await;
    let mut agent = node.place.agent().await;
    node.mount("");
    agent.kill();
    let everything = node.place.at("");
    let removed = tokio::task::spawn_blocking(move || {
        mounts::remove_below(&everything);
        mounts::below(&everything)
    });
    let left = timeout(Duration::from_secs(20), removed).await.expect("it does not hang").unwrap();
    assert!(left.is_empty(), "{left:?}");
    // The next agent finds a connection to nothing, and begins anew.
    let _agent = node.place.agent().await;
    node.mount("");
    assert_eq!(
        fs::read(node.target().join("config.json")).unwrap().len(),
        fs::read(node.model.directory.join("config.json")).unwrap().len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_keeper_takes_over_from_the_old_one() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let (node, mut old) = node_with_keeper(&gcs, &ModelShape::demo(), "60s").await;
    let mut agent = node.place.agent().await;
    node.mount("");
    let mut new = node.place.keeper(&["--replace"]).await;
    assert_eq!(old.ended().await, Some(0));
    let name = node.model.files.iter().rfind(|name| name.ends_with(".safetensors")).unwrap();
    let file = File::open(node.target().join(name)).unwrap();
    // Also one that is killed: the agent looks for the next, and gives it what it has.
    new.kill();
    let _newest = node.place.keeper(&[]).await;
    sleep(Duration::from_secs(4)).await;
    agent.kill();
    let _agent = node.place.agent().await;
    until_listening(&node.place).await;
    let end = file.metadata().unwrap().len() - 1;
    let read = tokio::task::spawn_blocking(move || file.read_at(&mut [0; 4096], end));
    let read = timeout(Duration::from_secs(60), read).await.expect("it does not hang").unwrap();
    assert_eq!(read.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_listens_for_root_alone_and_leaves_its_place_to_no_second_one() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let (node, _keeper) = node_with_keeper(&gcs, &ModelShape::demo(), "60s").await;
    let socket = node.place.at("keeper.sock");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&socket).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let mut second = crate::program::program("weightd-keeper");
    let second = crate::program::Ended::of(second.arg("--socket").arg(&socket));
    second.failed(69, &["a keeper listens there", "--replace"]);
    let refused = fs::read(&socket).unwrap_err();
    assert_ne!(refused.kind(), ErrorKind::NotFound);
}
