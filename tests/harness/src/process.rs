//! A server that runs as a process of its own and does not outlive the test.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::net;

/// How long a server may take until it listens. Node on a busy machine needs most of it.
const START_WITHIN: Duration = Duration::from_secs(60);

/// How long a server may take to end that answers no longer.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(5);

/// How often a server that found its port taken is started again on another.
const ATTEMPTS: usize = 5;

/// Why a fixture does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unready {
    /// Its program is not on this machine.
    #[error("{what} is not installed ({} is missing): run `cargo xtask tools`", path.display())]
    NotInstalled {
        /// The program.
        what: String,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// This machine does not allow it.
    #[error("{what} cannot be used here: {why}")]
    NotAllowed {
        /// What.
        what: String,
        /// Why not.
        why: String,
    },
    /// It is there, but did not come up.
    #[error("{what} did not start: {why}")]
    Failed {
        /// The program.
        what: String,
        /// What it said.
        why: String,
    },
}

impl Unready {
    pub(crate) fn failed(what: &str, why: &impl ToString) -> Self {
        Self::Failed { what: what.to_owned(), why: why.to_string() }
    }
}

/// What to run. `{0}`, `{1}` in an argument stand for the ports it shall listen on.
#[derive(Debug)]
pub(crate) struct Program<'a> {
    pub(crate) name: &'a str,
    pub(crate) path: PathBuf,
    pub(crate) args: Vec<OsString>,
    /// How many ports it listens on.
    pub(crate) ports: usize,
    pub(crate) env: Vec<(&'a str, OsString)>,
}

/// A running server, killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    ports: Vec<u16>,
    /// Its own files: data and log. Removed after the process, since fields drop after `drop`.
    directory: TempDir,
}

impl Server {
    /// Starts `program` in the directory and waits until it listens on all its ports.
    pub(crate) async fn start(program: &Program<'_>, directory: TempDir) -> Result<Self, Unready> {
        let mut why = String::new();
        for _ in 0..ATTEMPTS {
            let ports = (0..program.ports).map(|_| net::unused_port()).collect::<io::Result<Vec<u16>>>();
            let ports = ports.map_err(|error| Unready::failed(program.name, &error))?;
            let log = log(directory.path());
            let command = command(program, &ports, directory.path(), &log)
                .map_err(|error| Unready::failed(program.name, &error))?;
            let mut child = spawn(command).map_err(|error| Unready::failed(program.name, &error))?;
            match listening(&mut child, &ports).await {
                Ok(()) => return Ok(Self { child, ports, directory }),
                Err(reason) => {
                    end(&mut child);
                    why = format!("{reason}\n{}", tail(&log));
                }
            }
            if !why.to_lowercase().contains("in use") {
                break;
            }
        }
        Err(Unready::failed(program.name, &why))
    }

    /// The port number `index` it listens on.
    pub(crate) fn port(&self, index: usize) -> u16 {
        self.ports[index]
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its files lie.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The last that it said. Of one that seems to have ended: it is given a moment for that.
    pub(crate) async fn last_words(&mut self) -> String {
        let started = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && started.elapsed() < LAST_WORDS_WITHIN {
            sleep(Duration::from_millis(10)).await;
        }
        tail(&log(self.directory()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    // Either fails only when the process is gone already.
    let _ = child.kill();
    let _ = child.wait();
}

/// `setpriv` (util-linux, on every Debian) asks the kernel to kill the server when its parent dies, which covers
/// what `Drop` cannot: a test that is killed or aborts.
fn command(program: &Program<'_>, ports: &[u16], directory: &Path, log: &Path) -> io::Result<Command> {
    let setpriv = Path::new("/usr/bin/setpriv");
    let mut command = if setpriv.exists() {
        let mut wrapped = Command::new(setpriv);
        wrapped.args(["--pdeathsig", "KILL", "--"]).arg(&program.path);
        wrapped
    } else {
        Command::new(&program.path)
    };
    let log = File::create(log)?;
    command
        .args(program.args.iter().map(|arg| with_ports(arg, ports)))
        .envs(program.env.iter().map(|(name, value)| (name, value)))
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    Ok(command)
}

fn with_ports(arg: &OsString, ports: &[u16]) -> OsString {
    // Only text holds a placeholder; a path that is not UTF-8 passes as it is.
    let Some(text) = arg.to_str() else { return arg.clone() };
    let numbered = ports.iter().enumerate();
    numbered
        .fold(text.to_owned(), |text, (index, port)| text.replace(&format!("{{{index}}}"), &port.to_string()))
        .into()
}

async fn listening(child: &mut Child, ports: &[u16]) -> Result<(), String> {
    let started = Instant::now();
    while !ports.iter().all(|port| net::listens(child.id(), *port)) {
        match child.try_wait() {
            Ok(Some(status)) => return Err(format!("it ended with {status}")),
            Ok(None) if started.elapsed() > START_WITHIN => {
                return Err(format!("it does not listen after {} s", START_WITHIN.as_secs()));
            }
            Ok(None) => sleep(Duration::from_millis(10)).await,
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(())
}

/// What a server says, of those whose files lie in a directory.
fn log(directory: &Path) -> PathBuf {
    directory.join("server.log")
}

fn tail(log: &Path) -> String {
    let text = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// Spawns from a thread that lives as long as the test process. "Parent" in `pdeathsig` means the thread that
/// forked: a server shared by several tests would die with the first test's thread.
fn spawn(command: Command) -> io::Result<Child> {
    type Order = (Command, Sender<io::Result<Child>>);
    static ORDERS: OnceLock<Sender<Order>> = OnceLock::new();
    let orders = ORDERS.get_or_init(|| {
        let (orders, taken): (Sender<Order>, Receiver<Order>) = channel();
        thread::spawn(move || {
            for (mut command, answer) in taken {
                // The one who asked may have gone.
                let _ = answer.send(command.spawn());
            }
        });
        orders
    });
    let (answer, result) = channel();
    orders.send((command, answer)).map_err(io::Error::other)?;
    result.recv().map_err(io::Error::other)?
}
