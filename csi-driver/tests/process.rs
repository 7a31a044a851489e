//! `weightd-csi` as a process: what it says, how it ends, and what stays behind. It needs no agent for that.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

struct Running {
    child: Child,
    words: BufReader<ChildStderr>,
}

fn command(directory: &Path) -> Command {
    let mut command = without_http(directory);
    command.args(["--http-address", "off"]);
    command
}

fn without_http(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weightd-csi"));
    command.arg("--endpoint").arg(format!("unix://{}", socket(directory).display()));
    command.arg("--agent").arg(directory.join("weightd.sock")).arg("--registration-dir").arg(directory);
    command.args(["--node-id", "node-1", "--log-format", "json"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn socket(directory: &Path) -> PathBuf {
    directory.join("plugins/csi.sock")
}

/// Every socket below a directory that is tested in.
fn sockets(directory: &Path) -> Vec<PathBuf> {
    let registration = directory.join("csi.weightd.io@reg.sock");
    [socket(directory), registration].into_iter().filter(|path| path.exists()).collect()
}

impl Running {
    /// Starts a driver, and waits until it says that it is ready.
    fn start(directory: &Path) -> Self {
        let mut child = command(directory).spawn().unwrap();
        let mut words = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while words.read_line(&mut said).unwrap() > 0 {
            let line = said.lines().last().unwrap();
            let event: serde_json::Value = serde_json::from_str(line).expect("every line is JSON");
            if event["message"] == "ready" {
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

/// Runs a driver that must not start; gives the exit code and what it says.
fn refused(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn it_serves_until_a_signal_and_leaves_no_socket() {
    let directory = tempfile::tempdir().unwrap();
    for signal in [Signal::TERM, Signal::INT] {
        let driver = Running::start(directory.path());
        assert_eq!(sockets(directory.path()).len(), 2);
        let (code, said) = driver.end(signal);
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(sockets(directory.path()), Vec::<PathBuf>::new());
    }
}

#[test]
fn a_killed_drivers_sockets_are_taken_over_and_a_live_ones_are_not() {
    let directory = tempfile::tempdir().unwrap();
    Running::start(directory.path()).end(Signal::KILL);
    assert_eq!(sockets(directory.path()).len(), 2, "nobody was left to remove them");
    let driver = Running::start(directory.path());
    let (code, said) = refused(&mut command(directory.path()));
    assert_eq!(code, Some(75));
    assert!(said.contains("another driver listens on"), "{said}");
    assert!(said.contains(socket(directory.path()).to_str().unwrap()), "{said}");
    assert_eq!(sockets(directory.path()).len(), 2);
    assert_eq!(driver.end(Signal::TERM).0, Some(0));
}

#[test]
fn what_makes_no_sense_is_named_before_anything_is_touched() {
    let directory = tempfile::tempdir().unwrap();
    for (more, told) in [
        (["--http-address", "9465"], "--http-address"),
        (["--ready-within", "115"], "kubelet waits for 120"),
        (["--kubelet-directory", "/"], "--kubelet-directory"),
        (["--log", "a=b=c"], "--log"),
        (["--ready-needs-models", "--log=info"], "--cluster-namespace"),
    ] {
        let (code, said) = refused(without_http(directory.path()).args(more));
        assert_eq!(code, Some(64), "{more:?}: {said}");
        assert!(said.contains(told), "{more:?}: {said}");
        assert_eq!(sockets(directory.path()), Vec::<PathBuf>::new());
    }
}
