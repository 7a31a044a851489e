//! `weightd-keeper`: holds descriptors while agents come and go.
//!
//! An agent that dies takes its descriptors with it, and a FUSE file system dies with the last one of its connection.
//! So the agent leaves a copy here, under a name, and the next agent gets it back. That is all this process knows: it
//! neither reads what it keeps nor understands it. Two exceptions: the descriptor of a FUSE connection whose agent does
//! not come back within its grace is answered with EIO, so that nobody waits for ever. And memory for tensors is made
//! here, because the cgroup that touches memory first pays for it: one that is charged to an agent would have its next
//! container killed.
//!
//! It is meant to be read in one sitting and almost never updated. If it must be, the new one is started with
//! `--replace` beside the old one, which hands everything over and ends. `protocol.rs` has the messages.

mod arenas;
mod cgroup;
mod keeper;
mod kept;
mod place;
mod protocol;
mod refuse;
mod room;

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
};

use signal_hook::{consts::SIGTERM, flag::register_conditional_shutdown};

const USAGE: &str = "usage: weightd-keeper --socket PATH [--resident-limit SIZE] [--replace]

Holds descriptors for the weightd agent, so that volumes outlive it.

  --socket PATH          where the agent finds it; created with mode 0600
  --resident-limit SIZE  memory for tensors that model servers share, such as 70Gi; none unless it is given
  --replace              take over from the keeper that listens there now, which then ends";

fn main() -> ExitCode {
    let (mut socket, mut replace, mut resident_limit) = (None, false, 0);
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        let (name, value) = split(&argument);
        let is_alone = value.is_none();
        let value = || value.or_else(|| arguments.next());
        match name.to_str() {
            Some("--socket") => socket = value().map(PathBuf::from),
            Some("--replace") if is_alone => replace = true,
            Some("--resident-limit") => {
                let given = value().unwrap_or_default();
                match given.to_str().and_then(arenas::size) {
                    Some(size) => resident_limit = size,
                    None => {
                        return fail(
                            64,
                            &format!("--resident-limit {}: write a size such as 70Gi", given.display()),
                        );
                    }
                }
            }
            Some("--help" | "-h") if is_alone => {
                say(USAGE);
                return ExitCode::SUCCESS;
            }
            Some("--version") if is_alone => {
                say(concat!("weightd-keeper ", env!("CARGO_PKG_VERSION")));
                return ExitCode::SUCCESS;
            }
            _ => return fail(64, &format!("{} is not an option\n{USAGE}", argument.display())),
        }
    }
    let Some(socket) = socket else { return fail(64, USAGE) };
    // In a container it is the first process, which the kernel spares every signal that it has no handler for.
    if let Err(error) = register_conditional_shutdown(SIGTERM, 0, Arc::new(AtomicBool::new(true))) {
        return fail(71, &format!("SIGTERM cannot be handled: {error}"));
    }
    match keeper::run(&socket, replace, resident_limit) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(69, &format!("{}: {error}", socket.display())),
    }
}

/// An option's name, and what follows it behind an equals sign.
fn split(argument: &OsStr) -> (&OsStr, Option<OsString>) {
    let bytes = argument.as_bytes();
    let Some(at) = bytes.iter().position(|&byte| byte == b'=') else { return (argument, None) };
    (OsStr::from_bytes(&bytes[..at]), Some(OsStr::from_bytes(&bytes[at + 1..]).to_owned()))
}

fn fail(code: u8, text: &str) -> ExitCode {
    say(text);
    code.into()
}

/// Words go to stderr; one that is closed changes nothing.
fn say(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
