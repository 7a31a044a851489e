//! The agent as a process, and the command line as its client.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    process::Stdio,
    time::Duration,
};

use weightd_harness::{FakeGcs, Wire, require};

use crate::{
    place::{Place, number},
    program::{Ended, Running, until},
};

const SOURCE: &str = "gs://models/m";
const BYTES: usize = 40 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn two_clients_share_one_transfer_and_every_command_works_through_the_socket() {
    let gcs = require!(FakeGcs::start().await);
    gcs.create_bucket("models").await.unwrap();
    gcs.upload("models", "m/tokenizer.bin", vec![3; BYTES]).await.unwrap();
    let wire = Wire::start(&gcs.endpoint()).await.unwrap();
    let place = Place::new("[fetch]\nbandwidth = \"32MiB/s\"").gcs(wire.url());
    drop(std::os::unix::net::UnixListener::bind(place.socket()).unwrap());
    let mut agent = place.agent().await;
    assert_eq!(fs::metadata(place.socket()).unwrap().permissions().mode() & 0o777, 0o600);

    let prefetch = || {
        let mut command = place.client(&format!("prefetch {SOURCE} -o json"));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    for child in [prefetch(), prefetch()] {
        let brought = Ended::from(child.wait_with_output().unwrap()).json();
        assert_eq!(brought["snapshot"]["state"], "complete");
    }
    assert!(wire.received() < BYTES as u64 * 3 / 2, "{} bytes came", wire.received());

    let directory = place.ask(&format!("path {SOURCE}")).done();
    assert_eq!(directory.lines().count(), 1, "{directory}");
    assert_eq!(fs::read(format!("{}/tokenizer.bin", directory.trim_end())).unwrap(), vec![3; BYTES]);
    let status = place.ask("status -o json").json();
    assert!(number(&status["store"], "used_bytes") >= BYTES as u64, "{status}");
    assert!(place.ask(&format!("get {SOURCE}")).done().contains("tokenizer.bin"));
    place.ask(&format!("pin {SOURCE}")).done();
    let list = place.ask("ls").done();
    assert!(list.contains("pinned") && !list.contains('\x1b'), "{list}");
    place.ask("gc --partials -o json").json();
    place.ask(&format!("rm {SOURCE}")).failed(77, &["pinned", "--force"]);
    place.ask(&format!("unpin {SOURCE}")).done();
    place.ask(&format!("rm {SOURCE}")).done();
    place.ask(&format!("path {SOURCE}")).failed(66, &[SOURCE]);

    agent.signal("TERM");
    assert_eq!(agent.ended().await, Some(0));
    assert!(!place.socket().exists(), "it takes its socket away");
    let mut again: Running = place.agent().await;
    again.signal("INT");
    assert_eq!(again.ended().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detached_prefetch_survives_a_kill_at_the_moment_it_is_answered() {
    let gcs = require!(FakeGcs::start().await);
    gcs.create_bucket("models").await.unwrap();
    gcs.upload("models", "m/tokenizer.bin", vec![3; BYTES]).await.unwrap();
    let place = Place::new("").gcs(&gcs.endpoint());
    for _ in 0..5 {
        let mut agent = place.agent().await;
        place.ask(&format!("prefetch {SOURCE} --detach")).done();
        agent.kill();
        let mut agent = place.agent().await;
        until("the next agent completes it", async || {
            let ended = place.ask(&format!("path {SOURCE}"));
            assert!(matches!(ended.code, Some(0 | 75)), "{ended:?}");
            (ended.code == Some(0)).then_some(())
        })
        .await;
        until("nobody holds it", async || (place.ask(&format!("rm {SOURCE}")).code == Some(0)).then_some(()))
            .await;
        agent.signal("TERM");
        assert_eq!(agent.ended().await, Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_ready_from_when_it_answers_until_it_is_told_to_end() {
    let place = Place::new("");
    assert_eq!(get(&place, "/ready"), None, "nobody is there yet");
    let mut agent = Running::start(&mut place.agent_command());
    until("it is ready", async || match get(&place, "/ready")?.0 {
        200 => Some(()),
        early => panic!("refused or 503 before it is ready, not {early}"),
    })
    .await;
    place.ask("ls").done();
    assert_eq!(get(&place, "/live").unwrap(), (200, "live\n".to_owned()));
    let silent = TcpStream::connect(place.http_address()).unwrap();
    let _silent_client = std::os::unix::net::UnixStream::connect(place.socket()).unwrap();
    let told = std::time::Instant::now();
    agent.signal("TERM");
    until("it is no longer ready", async || {
        get(&place, "/ready").is_none_or(|(status, _)| status == 503).then_some(())
    })
    .await;
    assert_eq!(agent.ended().await, Some(0));
    assert!(told.elapsed() < Duration::from_secs(5), "silent clients held it up: {:?}", told.elapsed());
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_prometheus_text_and_move() {
    let gcs = require!(FakeGcs::start().await);
    gcs.create_bucket("models").await.unwrap();
    gcs.upload("models", "m/tokenizer.bin", vec![3; BYTES]).await.unwrap();
    let place = Place::new("").gcs(&gcs.endpoint());
    let _agent = place.agent().await;
    let before = samples(&get(&place, "/metrics").unwrap().1);
    place.ask(&format!("prefetch {SOURCE}")).done();
    let after = samples(&get(&place, "/metrics").unwrap().1);
    let bytes = BYTES as f64;
    for (name, least) in [
        ("weightd_fetch_fetched_bytes_total", bytes),
        ("weightd_fetch_requests_total", 1.0),
        ("weightd_store_snapshots", 1.0),
        ("weightd_store_used_bytes", bytes),
    ] {
        assert!(after[name] - before[name] >= least, "{name}: {} to {}", before[name], after[name]);
    }
    assert!(after.contains_key("weightd_agent_start_time_seconds"), "{after:?}");
}

/// Status and body; nothing when the connection is refused or cut off.
pub(crate) fn get(place: &Place, path: &str) -> Option<(u16, String)> {
    get_from(place.http_address(), path)
}

/// As [`get`], from another server.
pub(crate) fn get_from(address: (&str, u16), path: &str) -> Option<(u16, String)> {
    let mut connection = TcpStream::connect(address).ok()?;
    write!(connection, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().unwrap(), body.to_owned()))
}

/// Reads Prometheus text, strictly: each sample after the type of its family, all of them ours. Values by name, those
/// of different labels added up.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let (mut types, mut values) = (Vec::new(), BTreeMap::new());
    assert_eq!(text.lines().last(), Some("# EOF"));
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.split(' ');
            match words.next().unwrap() {
                "TYPE" => types.push(words.next().unwrap().to_owned()),
                "HELP" | "UNIT" | "EOF" => {}
                other => panic!("{other} is no comment of Prometheus"),
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        assert!(labels.ends_with('}') && name.starts_with("weightd_"), "{line}");
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'), "{line}");
        assert!(types.iter().any(|family| name.starts_with(family.as_str())), "{line} has no type");
        *values.entry(name.to_owned()).or_default() += value.parse::<f64>().unwrap();
    }
    values
}
