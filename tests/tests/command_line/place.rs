//! A directory with a configuration, a store and a socket.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::net::UnixStream;
use weightd_harness::unused_port;

use crate::program::{Ended, Running, program, until, words};

/// Where programs under test work.
#[derive(Debug)]
pub(crate) struct Place {
    directory: TempDir,
    metrics_port: u16,
    environment: Vec<(&'static str, String)>,
}

impl Place {
    /// With `more` after the settings every test needs, such as a whole `[fetch]`.
    pub(crate) fn new(more: &str) -> Self {
        Self::on(&std::env::temp_dir(), more)
    }

    /// In memory where there is some to be had: a hundred thousand files take a disk minutes that nobody learns from.
    pub(crate) fn in_memory(more: &str) -> Self {
        let memory = Path::new("/dev/shm");
        let free = rustix::fs::statvfs(memory).map_or(0, |found| found.f_bavail * found.f_frsize);
        Self::on(if free > 4 << 30 { memory } else { Path::new("/tmp") }, more)
    }

    fn on(above: &Path, more: &str) -> Self {
        let directory = tempfile::tempdir_in(above).unwrap();
        let place = Self { directory, metrics_port: unused_port().unwrap(), environment: Vec::new() };
        place.configure(&place.at("store"), more);
        place
    }

    /// Writes the configuration anew, with another store.
    pub(crate) fn configure(&self, store: &Path, more: &str) {
        let text = format!(
            "[agent]\nsocket = {:?}\nmetrics_address = \"127.0.0.1:{}\"\n\
             [store]\ndirectory = {store:?}\nfloor = 0.0\nbuffers = \"64MiB\"\ncheckpoint_interval = \"100ms\"\n\
             {more}\n",
            self.socket(),
            self.metrics_port
        );
        fs::write(self.at("weightd.toml"), text).unwrap();
    }

    /// Sets a variable for all programs.
    pub(crate) fn env(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.set_env(name, value);
        self
    }

    /// Sets a variable for programs that start from now on.
    pub(crate) fn set_env(&mut self, name: &'static str, value: impl Into<String>) {
        self.environment.push((name, value.into()));
    }

    /// Reads `gs://` from an emulator.
    pub(crate) fn gcs(self, endpoint: &str) -> Self {
        self.env("STORAGE_EMULATOR_HOST", endpoint)
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Where the agent serves metrics and health.
    pub(crate) fn http_address(&self) -> (&'static str, u16) {
        ("127.0.0.1", self.metrics_port)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.at("weightd.sock")
    }

    fn command(&self, name: &str) -> Command {
        let mut command = program(name);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// `weightctl` that works on the store itself.
    pub(crate) fn embedded(&self, line: &str) -> Command {
        let mut command = self.command("weightctl");
        command.arg("--config").arg(self.at("weightd.toml")).args(words(line));
        command
    }

    /// `weightctl` as it is, with no configuration.
    pub(crate) fn unconfigured(&self, line: &str) -> Command {
        let mut command = self.command("weightctl");
        command.args(words(line));
        command
    }

    /// `weightctl` that talks to the agent.
    pub(crate) fn client(&self, line: &str) -> Command {
        let mut command = self.command("weightctl");
        command.arg("--socket").arg(self.socket()).args(words(line));
        command
    }

    /// Runs a command on the store, without an agent.
    pub(crate) fn run(&self, line: &str) -> Ended {
        Ended::of(&mut self.embedded(line))
    }

    /// Asks the agent.
    pub(crate) fn ask(&self, line: &str) -> Ended {
        Ended::of(&mut self.client(line))
    }

    /// The directory of a complete snapshot.
    #[track_caller]
    pub(crate) fn path(&self, source: &str) -> PathBuf {
        PathBuf::from(self.run(&format!("path {source}")).done().trim_end())
    }

    /// The directory of a complete snapshot, as the agent says.
    #[track_caller]
    pub(crate) fn path_by_agent(&self, source: &str) -> PathBuf {
        PathBuf::from(self.ask(&format!("path {source}")).done().trim_end())
    }

    /// What a prefetch would fetch.
    #[track_caller]
    pub(crate) fn missing(&self, source: &str) -> u64 {
        number(&self.run(&format!("resolve {source} -o json")).json(), "missing_bytes")
    }

    /// The agent's command, with its log in a file.
    pub(crate) fn agent_command(&self) -> Command {
        let mut command = self.command("weightd");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.at("log")).unwrap();
        command.arg("--config").arg(self.at("weightd.toml")).stderr(log).stdout(Stdio::null());
        command
    }

    /// A keeper beside the agent.
    pub(crate) async fn keeper(&self, more: &[&str]) -> Running {
        let mut command = program("weightd-keeper");
        let socket = self.at("keeper.sock");
        let keeper = Running::start(command.arg("--socket").arg(&socket).args(more));
        until("the keeper listens", async || socket.exists().then_some(())).await;
        keeper
    }

    /// The agent, once it listens.
    pub(crate) async fn agent(&self) -> Running {
        let mut agent = Running::start(&mut self.agent_command());
        until("the agent listens", async || {
            let ended = agent.0.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", fs::read_to_string(self.at("log")).unwrap());
            UnixStream::connect(self.socket()).await.ok()
        })
        .await;
        agent
    }
}

/// A number of a JSON object.
#[track_caller]
pub(crate) fn number(object: &Value, key: &str) -> u64 {
    object[key].as_u64().unwrap_or_else(|| panic!("no number {key} in {object}"))
}
