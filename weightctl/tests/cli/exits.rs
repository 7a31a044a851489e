//! Exit codes and what is said with them.

use std::{
    io::{BufRead, BufReader, Read},
    process::Stdio,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tonic::Status;
use weightd_proto::v1::{self, Failure, FailureKind, prefetch_event::Event};

use crate::{
    canned::{Canned, FakeAgent, snapshot},
    program::{ask, run, weightctl},
};

fn failing(failure: Status) -> FakeAgent {
    FakeAgent::start(Canned { failure: Some(failure), ..Canned::default() })
}

#[test]
fn each_kind_of_failure_has_its_code() {
    for (kind, code) in [
        (FailureKind::Usage, 64),
        (FailureKind::Corrupt, 65),
        (FailureKind::NotFound, 66),
        (FailureKind::Unavailable, 69),
        (FailureKind::Unspecified, 70),
        (FailureKind::Memory, 71),
        (FailureKind::Disk, 74),
        (FailureKind::TryAgain, 75),
        (FailureKind::NotPermitted, 77),
    ] {
        let agent = failing(Failure::new(kind, "do this").into_status("gs://b/m: broken"));
        let words = ask(&agent.socket, "prefetch gs://b/m").failed(code);
        assert_eq!(words, "error: gs://b/m: broken\nhint: do this\n");
    }
}

#[test]
fn usage_errors_have_the_same_code_from_every_source() {
    for line in ["", "frobnicate", "prefetch", "ls --format xml", "prefetch gs://b --layout odd", "rm"] {
        let ended = run(weightctl().args(line.split(' ').filter(|word| !word.is_empty())));
        assert_eq!(ended.code, Some(64), "{line:?}: {}", ended.words);
        assert!(ended.words.contains("Usage") || ended.words.contains("--help"), "{line:?}: {}", ended.words);
    }
    let words = run(weightctl().args(["--config", "/does/not/exist", "ls"])).failed(64);
    assert!(words.contains("/does/not/exist"), "{words}");
    for line in ["--help", "--version", "help prefetch"] {
        assert!(!run(weightctl().args(line.split(' '))).done().is_empty());
    }
}

#[test]
fn an_agent_that_is_not_there_is_named_with_the_way_out() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("none.sock");
    let words = ask(&socket, "ls").failed(69);
    assert!(words.contains(socket.to_str().unwrap()) && words.contains("--store DIR"), "{words}");
}

#[test]
fn an_agent_of_another_version_is_recognised() {
    let agent = FakeAgent::start(Canned::default());
    let words = ask(&agent.socket, "gc").failed(69);
    assert!(words.contains("another version"), "{words}");
}

#[test]
fn a_stream_without_its_last_event_is_no_success() {
    let agent = FakeAgent::start(Canned::default());
    let words = ask(&agent.socket, "prefetch gs://b/m").failed(69);
    assert!(words.contains("without a result"), "{words}");
    let words = ask(&agent.socket, "verify").failed(69);
    assert!(words.contains("without a result"), "{words}");
}

#[test]
fn an_incomplete_snapshot_has_no_path_yet() {
    for (state, said) in
        [(v1::SnapshotState::Loading, "status"), (v1::SnapshotState::Interrupted, "prefetch gs://")]
    {
        let incomplete = v1::SnapshotInfo { state: state.into(), directory: String::new(), ..snapshot() };
        let get = v1::GetResponse { snapshot: Some(incomplete), objects: vec![] };
        let agent = FakeAgent::start(Canned { get: Some(get), ..Canned::default() });
        let words = ask(&agent.socket, "path gs://bucket/model").failed(75);
        assert!(words.contains(said), "{words}");
    }
}

#[test]
fn chunks_that_stay_bad_are_an_error_and_those_repaired_are_not() {
    for (repaired, code) in [(false, 65), (true, 0)] {
        let bad = v1::BadChunk { path: "a".to_owned(), length_bytes: 8, repaired, ..v1::BadChunk::default() };
        let summary = v1::VerifySummary {
            checked_bytes: 8,
            checked_blobs: 1,
            bad_chunks: 1,
            repaired_chunks: u64::from(repaired),
        };
        let verify = vec![v1::verify_event::Event::Bad(bad), v1::verify_event::Event::Summary(summary)];
        let agent = FakeAgent::start(Canned { verify, ..Canned::default() });
        let ended = ask(&agent.socket, "verify -o json");
        assert_eq!(ended.code, Some(code), "{}", ended.words);
        let data: serde_json::Value = serde_json::from_str(&ended.data).unwrap();
        assert_eq!(data["bad"][0]["repaired"], repaired);
    }
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let list = vec![snapshot(); 20_000];
    let agent = FakeAgent::start(Canned { list, ..Canned::default() });
    let mut command = weightctl();
    command.arg("--socket").arg(&agent.socket).args(["ls", "-o", "json"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::with_capacity(64, child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "[\n");
    let mut words = String::new();
    child.stderr.take().unwrap().read_to_string(&mut words).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{words}");
    assert_eq!(words, "");
}

#[test]
fn a_signal_ends_a_prefetch_and_says_that_it_resumes() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let resolved = v1::Resolved { source: "gs://b/m".to_owned(), ..v1::Resolved::default() };
        let canned =
            Canned { prefetch: vec![Event::Resolved(resolved)], prefetch_hangs: true, ..Canned::default() };
        let agent = FakeAgent::start(canned);
        let mut command = weightctl();
        command.arg("--socket").arg(&agent.socket).args(["prefetch", "gs://b/m"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut words = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        words.read_line(&mut said).unwrap();
        assert!(said.starts_with("gs://b/m: "), "{said}");
        let started = Instant::now();
        kill_process(Pid::from_child(&child), signal).unwrap();
        words.read_to_string(&mut said).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(code), "{status}: {said}");
        assert!(said.contains("the same command resumes"), "{said}");
        assert!(started.elapsed() < Duration::from_secs(5));
    }
}
