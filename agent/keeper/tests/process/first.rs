//! A keeper that is the first process of its container.

use std::{
    fs,
    process::{Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use weightd_harness::{Unready, require};

use super::{Keeper, client, until};

/// How a process becomes the first one without root.
const FIRST: [&str; 4] = ["--user", "--pid", "--fork", "--kill-child"];

/// Some machines let nobody have a user namespace.
fn namespaces() -> Result<(), Unready> {
    let tried = Command::new("unshare").args(FIRST).arg("true").output();
    let refused = |why: String| Unready::NotAllowed { what: "a user namespace".to_owned(), why };
    match tried {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(refused(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
        Err(error) => Err(refused(format!("unshare: {error}"))),
    }
}

#[test]
fn the_first_process_ends_when_it_is_asked_to() {
    require!(namespaces());
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("keeper.sock");
    let mut command = Command::new("unshare");
    command.args(FIRST).arg(env!("CARGO_BIN_EXE_weightd-keeper"));
    command.arg(format!("--socket={}", socket.display()));
    let mut container = Keeper(command.stderr(Stdio::null()).spawn().unwrap());
    let _client = client(&socket);
    let id = container.0.id();
    let first: i32 =
        fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap().trim().parse().unwrap();
    kill_process(Pid::from_raw(first).unwrap(), Signal::TERM).unwrap();
    until("it ends", || container.0.try_wait().unwrap().is_some());
    assert_eq!(container.code(), Some(0));
}
