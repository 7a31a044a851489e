//! What the command line prints: for programs, into closed pipes, and on a terminal.

use std::{fs, process::Stdio};

use serde_json::Value;
use weightd_harness::{FakeGcs, Fault, FaultProxy, require};

use crate::{
    place::{Place, number},
    program::{Ended, on_a_terminal, program},
};

const SNAPSHOT: &str = "directory id in_use last_used_at layout object_count pinned present_bytes resolved_at \
                        size_bytes source state wanted";
const OBJECT: &str = "blob checksum path present_bytes size_bytes tier verified version";
const COMMANDS: [&str; 12] = [
    "prefetch",
    "ls",
    "get",
    "status",
    "pin",
    "unpin",
    "rm",
    "gc",
    "verify",
    "path",
    "resolve",
    "completions",
];

/// A place with a model of two files in a directory, and its URI.
fn with_model() -> (Place, String) {
    let place = Place::new("");
    fs::create_dir(place.at("model")).unwrap();
    fs::write(place.at("model/config.json"), "{}").unwrap();
    fs::write(place.at("model/tokenizer.bin"), vec![7; 9 << 20]).unwrap();
    let source = format!("file://{}", place.at("model").display());
    (place, source)
}

#[track_caller]
fn assert_keys(value: &Value, expected: &str) {
    let keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys.join(" "), expected);
}

#[test]
fn scripts_find_the_keys_that_they_rely_on() {
    let (place, source) = with_model();
    let json = |line: &str| place.run(&format!("{line} -o json")).json();
    let plan = json(&format!("resolve {source} --exclude *.json"));
    assert_keys(&plan, "left_out missing_bytes objects snapshot_id source total_bytes");
    assert_keys(&plan["objects"][0], OBJECT);
    assert_keys(&plan["left_out"][0], OBJECT);
    let brought = json(&format!("prefetch {source}"));
    assert_keys(&brought, "elapsed_seconds fetched_bytes reused_bytes snapshot unverifiable_objects");
    assert_keys(&brought["snapshot"], SNAPSHOT);
    assert_keys(&json("ls")[0], SNAPSHOT);
    let got = json(&format!("get {source}"));
    assert_keys(&got, "objects snapshot");
    assert_keys(&got["snapshot"], SNAPSHOT);
    assert_keys(&got["objects"][0], OBJECT);
    let status = json("status");
    assert_keys(&status, "agent_version requests_in_flight store tiers transfers");
    let store =
        "direct_io directory disk_free_bytes disk_total_bytes engine floor_bytes quota_bytes used_bytes";
    assert_keys(&status["store"], store);
    let verified = json(&format!("verify {source}"));
    assert_keys(&verified, "bad bad_chunks checked_blobs checked_bytes repaired_chunks");
    assert_keys(&json("gc"), "evicted_snapshot_ids freed_bytes removed_blobs");
    assert_keys(&json(&format!("pin {source}")), SNAPSHOT);
    assert_keys(&json(&format!("unpin {source}")), SNAPSHOT);
    assert_keys(&json(&format!("rm {source}")), "freed_bytes snapshot_ids");
}

#[test]
fn a_pipe_that_is_closed_from_the_start_is_no_error() {
    let (place, source) = with_model();
    place.run(&format!("prefetch {source}")).done();
    let get = format!("get {source}");
    let resolve = format!("resolve {source}");
    let path = format!("path {source}");
    for line in ["ls", "ls -o json", &get, &resolve, &path, "status", "completions bash", "man", "--help"] {
        let mut command = place.embedded(line);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let ended = Ended::from(child.wait_with_output().unwrap());
        assert_eq!((ended.code, ended.words.as_str()), (Some(0), ""), "{line}");
    }
}

/// Whether a text sets a colour or a weight: `ESC [ numbers m`.
fn is_coloured(text: &str) -> bool {
    let mut sequences = text.split("\x1b[").skip(1);
    sequences.any(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').starts_with('m'))
}

#[test]
fn colour_is_for_terminals_whose_owner_likes_it() {
    let (place, source) = with_model();
    let lines =
        ["--help".to_owned(), "frobnicate".to_owned(), format!("prefetch {source} -v"), "ls".to_owned()];
    for line in &lines {
        let ended = place.run(line);
        assert!(!ended.data.contains('\x1b') && !ended.words.contains('\x1b'), "{line}: {ended:?}");
        let shown = on_a_terminal(place.embedded(line).env("NO_COLOR", "1"));
        assert!(!shown.is_empty() && !is_coloured(&shown), "{line}: {shown:?}");
    }
    assert!(
        is_coloured(&on_a_terminal(&place.embedded("--help"))),
        "without NO_COLOR there is some to switch off"
    );
    assert!(is_coloured(&on_a_terminal(&place.embedded("ls -vv"))));
}

#[test]
fn every_shell_completes_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = Ended::of(program("weightctl").args(["completions", shell])).done();
        for command in COMMANDS {
            assert!(script.contains(command), "{shell} does not know {command}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_not_complete_has_no_path_and_says_how_to_get_one() {
    const SOURCE: &str = "gs://models/m";
    let gcs = require!(FakeGcs::start().await);
    let proxy = FaultProxy::start(&gcs.endpoint()).await.unwrap();
    gcs.create_bucket("models").await.unwrap();
    gcs.upload("models", "m/tokenizer.bin", vec![3; 24 << 20]).await.unwrap();
    let place = Place::new("[fetch]\nattempts = 2\nbandwidth = \"1MiB/s\"").gcs(&proxy.url());
    proxy.inject("alt=media", 1_000, Fault::Status { code: 404, retry_after: None });
    assert_ne!(place.run(&format!("prefetch {SOURCE}")).code, Some(0));
    proxy.clear();
    let path = format!("path {SOURCE}");
    let ended = place.run(&path);
    assert_eq!(ended.data, "", "$(weightctl path …) must not take words for a directory");
    ended.failed(75, &[SOURCE, "no transfer runs", "hint: weightctl prefetch gs://models/m\n"]);

    let _agent = place.agent().await;
    place.ask(&format!("prefetch {SOURCE} --detach")).done();
    place.ask(&path).failed(75, &[SOURCE, "is not complete yet", "weightctl status"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_prefetch_of_a_complete_snapshot_asks_for_one_listing_and_nothing_else() {
    const SOURCE: &str = "gs://models/m";
    let gcs = require!(FakeGcs::start().await);
    let proxy = FaultProxy::start(&gcs.endpoint()).await.unwrap();
    gcs.create_bucket("models").await.unwrap();
    gcs.upload("models", "m/config.json", "{}").await.unwrap();
    gcs.upload("models", "m/tokenizer.bin", vec![3; 9 << 20]).await.unwrap();
    let place = Place::new("").gcs(&proxy.url());
    place.run(&format!("prefetch {SOURCE}")).done();
    assert!(proxy.requests().all().iter().any(|request| request.target.contains("alt=media")));
    proxy.requests().clear();
    let again = place.run(&format!("prefetch {SOURCE} -o json")).json();
    assert_eq!(number(&again, "fetched_bytes"), 0);
    let requests: Vec<_> = proxy.requests().all().into_iter().map(|request| request.target).collect();
    assert_eq!(requests.len(), 1, "{requests:?}");
    assert!(requests[0].starts_with("/storage/v1/b/models/o?"), "{requests:?}");
}
