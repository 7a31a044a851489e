//! Volumes that are in the page cache before anyone reads them.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use rustix::fs::{Advice, fadvise};
use weightd_harness::{FakeGcs, ModelShape, Unready, fincore, require};

use crate::{
    daemon::get,
    program::until,
    volumes::{Node, SLOW, SOURCE, fuse},
};

/// Bytes of a file that are in the page cache.
fn warm_bytes(path: &Path) -> u64 {
    let fincore = fincore().expect("tests require it first");
    let output =
        Command::new(fincore).args(["--bytes", "--noheadings", "--output", "RES"]).arg(path).output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    text.trim().parse().unwrap_or_else(|_| panic!("{}: {text}", path.display()))
}

/// Whether volumes can be mounted here, and the page cache looked at; says why not.
fn ready() -> Result<(), Unready> {
    fuse()?;
    fincore().map(drop)
}

/// The model's files as they lie in the store.
fn blobs(node: &Node) -> Vec<PathBuf> {
    let answer = node.place.ask(&format!("get {SOURCE} -o json")).json();
    let objects = answer["objects"].as_array().unwrap();
    let names = objects.iter().map(|object| object["blob"].as_str().unwrap());
    names.map(|name| node.place.at("store/blobs").join(&name[..2]).join(name)).collect()
}

/// Has the kernel forget the pages of the model's files. Where files are memory, it cannot.
fn cool(node: &Node) -> Result<(), Unready> {
    const TMPFS: u64 = 0x0102_1994;
    let place = node.place.at("store");
    if rustix::fs::statfs(&place).unwrap().f_type as u64 == TMPFS {
        let why = format!("{} is in memory", place.display());
        return Err(Unready::NotAllowed { what: "dropping pages".to_owned(), why });
    }
    for path in blobs(node) {
        let file = File::open(path).unwrap();
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    }
    Ok(())
}

fn assert_warm(node: &Node) {
    for path in blobs(node) {
        let part = warm_bytes(&path) as f64 / fs::metadata(&path).unwrap().len() as f64;
        // The kernel may have taken some of it back already, on a machine where many tests run.
        assert!(part > 0.9, "{part} of {} is warm", path.display());
    }
}

fn warmed_bytes(node: &Node) -> u64 {
    let text = get(&node.place, "/metrics").unwrap().1;
    let line = text.lines().find_map(|line| line.strip_prefix("weightd_expose_warmed_bytes_total "));
    line.unwrap().parse().unwrap()
}

async fn until_logged(node: &Node, words: &str) -> String {
    until(words, async || {
        let log = fs::read_to_string(node.place.at("log")).unwrap();
        log.contains(words).then_some(log)
    })
    .await
}

/// With the model in the store, and none of it in the page cache.
async fn stored(gcs: &FakeGcs, more: &str) -> Node {
    let node = Node::new(gcs, &gcs.endpoint(), &ModelShape::demo(), more).await;
    node.place.run(&format!("prefetch {SOURCE} --layout original")).done();
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn a_complete_volume_is_read_into_the_page_cache_when_that_is_wanted() {
    require!(ready());
    let gcs = require!(FakeGcs::start().await);
    let node = stored(&gcs, "").await;
    let _agent = node.place.agent().await;
    require!(cool(&node));
    node.mount("");
    assert_eq!(warmed_bytes(&node), 0, "nobody asked for it");
    node.mount("--warm-up --wait");
    until_logged(&node, "warmed up").await;
    assert_warm(&node);
    assert_eq!(warmed_bytes(&node), node.model.file_bytes().unwrap());
    assert_eq!(node.volume(), ("bind".to_owned(), "complete".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_loads_is_warmed_up_once_it_is_complete() {
    require!(ready());
    let gcs = require!(FakeGcs::start().await);
    let more = format!("{SLOW}\nwarm_up = true");
    let node = Node::new(&gcs, &gcs.endpoint(), &ModelShape::demo(), &more).await;
    let _agent = node.place.agent().await;
    node.mount("");
    assert_eq!(node.volume(), ("passthrough".to_owned(), "loading".to_owned()));
    assert_eq!(warmed_bytes(&node), 0);
    node.until_complete().await;
    until_logged(&node, "warmed up").await;
    assert_warm(&node);
}

/// Bytes of the model's files that are in the page cache, and that have come, some time while it loads.
async fn while_loading(gcs: &FakeGcs, more: &str) -> (f64, f64) {
    const ENOUGH: u64 = 48 << 20;
    let settings = "[fetch]\nbandwidth = \"32MiB/s\"\n[volumes]\nread_ahead = \"1MiB\"";
    let node = Node::new(gcs, &gcs.endpoint(), &ModelShape::demo(), settings).await;
    let _agent = node.place.agent().await;
    node.mount(more);
    until("enough has come", async || (present_bytes(&node) > ENOUGH).then_some(())).await;
    let present = present_bytes(&node) as f64;
    let paths = blobs(&node).into_iter().filter(|path| path.exists());
    let cached = paths.map(|path| warm_bytes(&path) as f64).sum();
    assert_eq!(node.volume().1, "loading", "otherwise this shows nothing");
    (cached, present)
}

fn present_bytes(node: &Node) -> u64 {
    node.place.ask("mounts -o json").json()["volumes"][0]["present_bytes"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_arrives_stays_in_the_page_cache_when_that_is_wanted() {
    require!(ready());
    let gcs = require!(FakeGcs::start().await);
    let (cached, present) = while_loading(&gcs, "--warm-up").await;
    assert!(cached > 0.9 * present, "{cached} of {present}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_arrives_leaves_the_page_cache_alone_when_nobody_wants_it() {
    require!(ready());
    let gcs = require!(FakeGcs::start().await);
    let (cached, present) = while_loading(&gcs, "").await;
    assert!(cached < 0.1 * present, "{cached} of {present}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_beside_the_floor_is_not_read_and_the_log_says_why() {
    require!(ready());
    let gcs = require!(FakeGcs::start().await);
    let node = stored(&gcs, "[volumes]\nwarm_up_floor = \"1000TiB\"").await;
    let _agent = node.place.agent().await;
    require!(cool(&node));
    node.mount("--warm-up");
    let log = until_logged(&node, "a warm-up stopped for want of memory").await;
    assert!(log.contains("the machine has") && log.contains("is left alone"), "{log}");
    assert_eq!(log.matches("a warm-up stopped").count(), 1);
    assert_eq!(warmed_bytes(&node), 0);
    assert_eq!(blobs(&node).iter().map(|path| warm_bytes(path)).sum::<u64>(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_agent_nothing_can_be_warmed_up_after_the_command() {
    let node = crate::place::Place::new("");
    let line = format!("mount {SOURCE} {} --warm-up", node.at("target").display());
    node.run(&line).failed(64, &["--warm-up", "leave out --store and --config"]);
}
