//! `weightd` as a process: what it says, how it ends, and what stays behind.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use weightd_client::Client;

struct Running {
    child: Child,
    words: BufReader<ChildStderr>,
}

fn command(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weightd"));
    command.arg("--store").arg(directory.join("store")).arg("--socket").arg(socket(directory));
    command.args(["--metrics-address", "127.0.0.1:0", "--log-format", "json"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn socket(directory: &Path) -> PathBuf {
    directory.join("run/weightd.sock")
}

impl Running {
    /// Starts an agent, and waits until it says that it is ready.
    fn start(directory: &Path) -> Self {
        let mut child = command(directory).spawn().unwrap();
        let mut words = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while words.read_line(&mut said).unwrap() > 0 {
            let line = said.lines().last().unwrap();
            let event: serde_json::Value = serde_json::from_str(line).expect("every line is JSON");
            if event["message"] == "ready" {
                assert_eq!(event["socket"], socket(directory).to_str().unwrap());
                return Self { child, words };
            }
        }
        let status = child.wait();
        panic!("it ended ({status:?}) before it was ready: {said}");
    }

    /// Sends a signal; gives the exit code, and what was said from then on.
    fn end(mut self, signal: Signal) -> (Option<i32>, String) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        let mut said = String::new();
        self.words.read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap().code(), said)
    }
}

/// Runs an agent that must not start; gives the exit code and what it says.
fn refused(mut command: Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test]
async fn it_serves_until_a_signal_and_leaves_no_socket() {
    let directory = tempfile::tempdir().unwrap();
    for signal in [Signal::TERM, Signal::INT] {
        let agent = Running::start(directory.path());
        let client = Client::connect(&socket(directory.path())).await.unwrap();
        assert!(client.list().await.unwrap().is_empty());
        let (code, said) = tokio::task::spawn_blocking(move || agent.end(signal)).await.unwrap();
        assert_eq!(code, Some(0), "{said}");
        assert!(!socket(directory.path()).exists());
    }
}

#[tokio::test]
async fn a_killed_agents_socket_and_store_are_taken_over() {
    let directory = tempfile::tempdir().unwrap();
    Running::start(directory.path()).end(Signal::KILL);
    assert!(socket(directory.path()).exists(), "nobody was left to remove it");
    let next = Running::start(directory.path());
    Client::connect(&socket(directory.path())).await.unwrap();
    let (code, said) = tokio::task::spawn_blocking(move || next.end(Signal::TERM)).await.unwrap();
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn a_second_agent_names_what_is_in_use_and_leaves_it_in_use() {
    let directory = tempfile::tempdir().unwrap();
    let agent = Running::start(directory.path());
    let (code, said) = refused(command(directory.path()));
    assert_eq!(code, Some(75));
    assert!(said.contains(&format!("in use by another agent (process {})", agent.child.id())), "{said}");

    let mut other = Command::new(env!("CARGO_BIN_EXE_weightd"));
    other.arg("--store").arg(directory.path().join("other")).arg("--socket").arg(socket(directory.path()));
    let (code, said) = refused(other);
    assert_eq!(code, Some(75));
    assert!(said.contains("another agent listens on"), "{said}");
    assert!(said.contains(socket(directory.path()).to_str().unwrap()), "{said}");
    assert!(socket(directory.path()).exists());
    assert_eq!(agent.end(Signal::TERM).0, Some(0));
}

#[test]
fn what_stops_it_from_starting_has_its_exit_code() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let other = |store: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weightd"));
        command.arg("--store").arg(at(store)).arg("--socket").arg(at("weightd.sock"));
        command
    };
    std::fs::create_dir(at("full")).unwrap();
    std::fs::write(at("full/thesis.tex"), "years").unwrap();
    let (code, said) = refused(other("full"));
    assert_eq!(code, Some(64), "{said}");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut address = other("store");
    address.args(["--metrics-address", &taken.local_addr().unwrap().to_string()]);
    let (code, said) = refused(address);
    assert_eq!(code, Some(69), "{said}");

    std::fs::write(at("store/format"), "weightd-store 99\n").unwrap();
    let (code, said) = refused(other("store"));
    assert_eq!(code, Some(64), "{said}");

    std::fs::write(at("broken.toml"), "[store").unwrap();
    let mut broken = other("store");
    broken.arg("--config").arg(at("broken.toml"));
    let (code, said) = refused(broken);
    assert_eq!(code, Some(64), "{said}");
    assert!(said.contains("broken.toml") && said.contains("line 1, column 7"), "{said}");
}

#[test]
fn a_wrong_configuration_is_told_whole_and_nothing_is_touched() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("weightd.toml");
    std::fs::write(&file, "[store]\nquota = \"lots\"\n[fetch]\nrange = 5\nspeed = 1\n").unwrap();
    let mut wrong = command(directory.path());
    wrong.arg("--config").arg(&file);
    let (code, said) = refused(wrong);
    assert_eq!(code, Some(64));
    for key in ["store.quota = \"lots\"", "fetch.range = 5", "fetch.speed"] {
        assert!(said.contains(key), "no {key} in {said}");
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "only the file is there");

    let mut check = command(directory.path());
    check.arg("--check");
    assert_eq!(refused(check), (Some(0), String::new()));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "a check touches nothing");
    let mut unknown = command(directory.path());
    unknown.arg("--frobnicate");
    assert_eq!(refused(unknown).0, Some(64));
}
