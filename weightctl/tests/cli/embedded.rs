//! The whole way without an agent: the real agent in this program's process, a real directory as the source.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::Stdio,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::program::{Ended, run, weightctl};

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { directory: tempfile::tempdir().unwrap() };
        fs::create_dir(place.at("model")).unwrap();
        fs::write(place.at("model/config.json"), "{}").unwrap();
        fs::write(place.at("model/tokenizer.bin"), vec![7; 9 << 20]).unwrap();
        let store = place.at("store");
        fs::write(place.at("weightd.toml"), format!("[store]\ndirectory = {store:?}\nfloor = 0.0\n"))
            .unwrap();
        place
    }

    fn at(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn source(&self) -> String {
        format!("file://{}", self.at("model").display())
    }

    /// Runs a command on the configured store; `SOURCE` stands for the model's URI.
    fn ask(&self, line: &str) -> Ended {
        let words =
            line.split(' ').map(|word| if word == "SOURCE" { self.source() } else { word.to_owned() });
        run(weightctl().arg("--config").arg(self.at("weightd.toml")).args(words))
    }
}

#[test]
fn a_model_is_brought_looked_at_checked_and_removed() {
    let place = Place::new();
    let plan: Value = serde_json::from_str(&place.ask("resolve SOURCE -o json").done()).unwrap();
    assert_eq!(plan["missing_bytes"], (9 << 20) + 2);
    let brought: Value = serde_json::from_str(&place.ask("prefetch SOURCE --pin -o json").done()).unwrap();
    assert_eq!(brought["fetched_bytes"], (9 << 20) + 2);
    let directory = place.ask("path SOURCE").done();
    let directory = Path::new(directory.trim_end());
    assert_eq!(fs::read(directory.join("tokenizer.bin")).unwrap(), vec![7; 9 << 20]);

    let again = place.ask("prefetch SOURCE");
    assert!(again.words.contains("already here: 2 files"), "{}", again.words);
    assert!(place.ask("ls").done().contains("pinned"));
    assert!(place.ask("get SOURCE").done().contains("tokenizer.bin"));
    assert!(place.ask("status").done().contains(place.at("store").to_str().unwrap()));
    assert!(place.ask("verify").words.contains("all as recorded"));
    let words = place.ask("rm SOURCE").failed(77);
    assert!(words.contains("pinned"), "{words}");
    place.ask("unpin SOURCE").done();
    place.ask("rm SOURCE").done();
    place.ask("path SOURCE").failed(66);
}

#[test]
fn a_snapshot_that_lost_a_file_is_not_complete() {
    let place = Place::new();
    let words = place.ask("prefetch SOURCE").words;
    assert!(words.contains("no checksums") && !words.contains("verified:"), "{words}");
    let directory = place.ask("path SOURCE").done();
    fs::remove_file(Path::new(directory.trim_end()).join("config.json")).unwrap();
    let words = place.ask("path SOURCE").failed(75);
    assert!(words.contains("is not complete") && words.contains("weightctl prefetch file://"), "{words}");
    assert!(place.ask("get SOURCE").done().contains("interrupted"));
    place.ask("prefetch SOURCE").done();
    assert_eq!(place.ask("path SOURCE").done(), directory);
}

#[test]
fn an_interrupted_prefetch_resumes_with_the_same_command() {
    let place = Place::new();
    fs::write(place.at("model/tokenizer.bin"), vec![7; 24 << 20]).unwrap();
    let quick = fs::read_to_string(place.at("weightd.toml")).unwrap();
    fs::write(
        place.at("weightd.toml"),
        format!("{quick}[fetch]\nmin_requests = 1\nmax_requests = 1\nbandwidth = \"3MiB/s\"\n"),
    )
    .unwrap();
    let mut command = weightctl();
    command.arg("--config").arg(place.at("weightd.toml")).args(["prefetch", &place.source()]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut words = BufReader::new(child.stderr.take().unwrap()).lines();
    // The first line about the whole comes after five seconds, which is past the first chunk.
    let said = words.find(|line| line.as_ref().unwrap().contains("%: "));
    assert!(said.is_some(), "it ended before it could be interrupted");
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let said: Vec<String> = words.map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said:?}");
    assert!(said.last().unwrap().contains("the same command resumes"), "{said:?}");

    fs::write(place.at("weightd.toml"), quick).unwrap();
    let brought: Value = serde_json::from_str(&place.ask("prefetch SOURCE -o json").done()).unwrap();
    assert!(brought["reused_bytes"].as_u64().unwrap() >= 8 << 20, "{brought}");
}

#[test]
fn what_cannot_be_brought_says_why() {
    let place = Place::new();
    let words = place.ask("prefetch file:///does/not/exist").failed(66);
    assert!(words.contains("file:///does/not/exist"), "{words}");
    let words = place.ask("prefetch model").failed(64);
    assert!(words.contains("begin with one of gs://"), "{words}");
    let words = place.ask("prefetch SOURCE --detach").failed(64);
    assert!(words.contains("start weightd"), "{words}");
    fs::write(place.at("model/bad.safetensors"), [0xff; 64]).unwrap();
    let words = place.ask("prefetch SOURCE").failed(65);
    assert!(words.contains("bad.safetensors"), "{words}");
    fs::write(place.at("weightd.toml"), "[store]\ndirectory = 3\ncolour = 1\n").unwrap();
    let words = place.ask("ls").failed(64);
    assert!(words.contains("2 mistakes") && words.contains("store.colour"), "{words}");
}

#[test]
fn a_directory_that_is_no_store_is_left_alone() {
    let place = Place::new();
    let ended = run(weightctl().arg("--store").arg(place.at("model")).arg("ls"));
    let words = ended.failed(64);
    assert!(words.contains("not a weightd store"), "{words}");
    assert_eq!(fs::read_dir(place.at("model")).unwrap().count(), 2);
}

#[test]
fn two_signals_end_a_prefetch_from_an_origin_that_stalls_at_once() {
    let place = Place::new();
    let origin = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let source = format!("http://{}/model", origin.local_addr().unwrap());
    let mut command = weightctl();
    command.arg("--config").arg(place.at("weightd.toml")).args(["prefetch", &source]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    // It asks, and nobody answers.
    let _asked = origin.accept().unwrap();
    let started = std::time::Instant::now();
    for _ in 0..2 {
        // The second may come too late.
        let _ = kill_process(Pid::from_child(&child), Signal::INT);
    }
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130), "{status}");
    assert!(started.elapsed() < std::time::Duration::from_secs(2));
}
