//! An agent with its keeper and store in a directory, as a node has them.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use weightd_harness::mounts;

use crate::{SOURCE, binary, cpu_of, peak_of, run, wait_until};

/// How long anything may take to come up or go away.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running agent and keeper. Ended, unmounted and removed when dropped.
#[derive(Debug)]
pub struct Node {
    directory: PathBuf,
    environment: Vec<(&'static str, String)>,
    more: String,
    keeper: Process,
    agent: Process,
}

/// A program that ends with its value.
#[derive(Debug)]
pub struct Process(Child);

impl Node {
    /// With an empty store in a directory, which must not exist; `more` is added to the configuration.
    ///
    /// # Errors
    /// When one of them does not come up.
    pub fn start(directory: &Path, endpoint: &str, more: &str) -> Result<Self> {
        Self::start_with_memory(directory, endpoint, more, 0)
    }

    /// The same with a keeper that makes so many bytes of memory for hand-off.
    ///
    /// # Errors
    /// When one of them does not come up.
    pub fn start_with_memory(
        directory: &Path,
        endpoint: &str,
        more: &str,
        resident_limit: u64,
    ) -> Result<Self> {
        let environment = vec![("STORAGE_EMULATOR_HOST", endpoint.to_owned())];
        Self::start_in(directory, environment, more, resident_limit)
    }

    /// The same with an agent that has this in its environment, which says where buckets are.
    ///
    /// # Errors
    /// When one of them does not come up.
    pub fn start_in(
        directory: &Path,
        environment: Vec<(&'static str, String)>,
        more: &str,
        resident_limit: u64,
    ) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let directory = directory.canonicalize()?;
        let mut command = Command::new(binary("weightd-keeper")?);
        command.arg("--socket").arg(directory.join("keeper.sock"));
        command.arg("--resident-limit").arg(resident_limit.to_string());
        let keeper = Process::start(&mut command, &directory.join("keeper.log"))?;
        let socket = directory.join("keeper.sock");
        ensure!(
            wait_until(PATIENCE, || socket.exists()),
            "the keeper does not listen: {}",
            log(&directory, "keeper.log")
        );
        let agent = start_agent(&directory, &environment, more)?;
        Ok(Self { directory, environment, more: more.to_owned(), keeper, agent })
    }

    /// Kills the agent. Its volumes stay, and wait for the next.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill_agent(&mut self) -> Result<()> {
        self.agent.0.kill()?;
        self.agent.0.wait().context("waiting for the agent")?;
        Ok(())
    }

    /// Starts another agent in place of the one that was killed.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_agent(&mut self) -> Result<()> {
        self.agent = start_agent(&self.directory, &self.environment, &self.more)?;
        Ok(())
    }

    /// A place in the node's directory.
    pub fn target(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Shows the model at a directory of this name; gives the directory.
    ///
    /// # Errors
    /// When the command fails.
    pub fn mount(&self, name: &str, more: &[&str]) -> Result<PathBuf> {
        self.mount_source(SOURCE, name, more)
    }

    /// The same of any model.
    ///
    /// # Errors
    /// When the command fails.
    pub fn mount_source(&self, source: &str, name: &str, more: &[&str]) -> Result<PathBuf> {
        let target = self.target(name);
        run(self.weightctl()?.args(["mount", source]).arg(&target).args(more))?;
        Ok(target)
    }

    /// What a mounted volume is served by.
    ///
    /// # Errors
    /// When it is not mounted.
    pub fn serving(&self, name: &str) -> Result<String> {
        self.told(name, "serving")
    }

    /// How far a mounted volume is, such as `loading`.
    ///
    /// # Errors
    /// When it is not mounted.
    pub fn state(&self, name: &str) -> Result<String> {
        self.told(name, "state")
    }

    fn told(&self, name: &str, what: &str) -> Result<String> {
        let output = self.weightctl()?.args(["mounts", "-o", "json"]).output()?;
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let target = self.target(name);
        let volumes = answer["volumes"].as_array().context("no volumes are listed")?;
        let found = volumes.iter().find(|volume| volume["target"] == *target.to_string_lossy());
        let told = found.and_then(|volume| volume[what].as_str());
        Ok(told.with_context(|| format!("{} is not mounted", target.display()))?.to_owned())
    }

    /// The model's files in the store itself.
    ///
    /// # Errors
    /// When it is not there.
    pub fn native(&self) -> Result<PathBuf> {
        let output = self.weightctl()?.args(["path", SOURCE]).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
    }

    /// How often readers had to wait for bytes from the origin.
    ///
    /// # Errors
    /// When the agent does not say.
    pub fn demands(&self) -> Result<u64> {
        self.metric("weightd_expose_demands_total")
    }

    /// Waits until no tensors are in memory: the next run begins from the files.
    ///
    /// # Errors
    /// When some stay.
    pub fn until_forgotten(&self) -> Result<()> {
        let is_forgotten = || self.metric("weightd_expose_resident_bytes").is_ok_and(|bytes| bytes == 0);
        ensure!(wait_until(PATIENCE, is_forgotten), "the agent keeps tensors that nobody leases");
        Ok(())
    }

    /// A number of the agent's page of metrics.
    ///
    /// # Errors
    /// When the agent does not say.
    pub fn metric(&self, name: &str) -> Result<u64> {
        let port: u16 = fs::read_to_string(self.directory.join("port"))?.parse()?;
        let mut agent = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        agent.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        agent.read_to_string(&mut text)?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.with_context(|| format!("the agent has no metric {name}"))?.parse()?)
    }

    /// Brings a model into the store, and waits until it is durable there.
    ///
    /// # Errors
    /// When the command fails.
    pub fn prefetch(&self, source: &str) -> Result<()> {
        run(self.weightctl()?.args(["prefetch", source])).map(drop)
    }

    /// Takes away what is mounted at a directory of this name.
    ///
    /// # Errors
    /// When the command fails.
    pub fn umount(&self, name: &str) -> Result<()> {
        run(self.weightctl()?.arg("umount").arg(self.target(name))).map(drop)
    }

    /// Processor time of agent and keeper.
    ///
    /// # Errors
    /// When they have ended.
    pub fn cpu(&self) -> Result<Duration> {
        Ok(cpu_of(self.agent.0.id())? + cpu_of(self.keeper.0.id())?)
    }

    /// Most memory resident at once in agent and keeper, in bytes.
    ///
    /// # Errors
    /// When they have ended.
    pub fn peaks(&self) -> Result<[u64; 2]> {
        let [agent, keeper] = self.processes().map(peak_of);
        Ok([agent?, keeper?])
    }

    /// Agent and keeper, for measuring.
    pub fn processes(&self) -> [u32; 2] {
        [self.agent.0.id(), self.keeper.0.id()]
    }

    /// The socket for hand-off that serves every model of the node; it may come a little later than the agent's.
    ///
    /// # Errors
    /// When it does not come.
    pub fn handoff_socket(&self) -> Result<PathBuf> {
        let socket = self.directory.join("handoff.sock");
        ensure!(wait_until(PATIENCE, || socket.exists()), "the agent offers no hand-off");
        Ok(socket)
    }

    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("weightd.sock")
    }

    fn weightctl(&self) -> Result<Command> {
        let mut command = Command::new(binary("weightctl")?);
        command.arg("--socket").arg(self.socket());
        Ok(command)
    }
}

#[allow(clippy::print_stderr, reason = "a benchmark reports to its terminal")]
impl Drop for Node {
    fn drop(&mut self) {
        for target in mounts::below(&self.directory) {
            if let Err(error) = Command::new("umount").arg("--lazy").arg(&target).status() {
                eprintln!("unmounting {}: {error}", target.display());
            }
        }
        self.agent.end();
        self.keeper.end();
        mounts::remove_below(&self.directory);
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            eprintln!("removing {}: {error}", self.directory.display());
        }
        // Freed blocks are discarded in the background; without this the next run would pay for this one.
        rustix::fs::sync();
    }
}

fn start_agent(directory: &Path, environment: &[(&'static str, String)], more: &str) -> Result<Process> {
    let port = weightd_harness::unused_port()?;
    fs::write(directory.join("port"), port.to_string())?;
    let (socket, config) = (directory.join("weightd.sock"), directory.join("weightd.toml"));
    let text = format!(
        "[agent]\nsocket = {socket:?}\nmetrics_address = \"127.0.0.1:{port}\"\n[store]\ndirectory = {:?}\nfloor = 0.05\n\
         [volumes]\nkeeper = {:?}\n{more}\n",
        directory.join("store"),
        directory.join("keeper.sock"),
    );
    fs::write(&config, text)?;
    let mut command = Command::new(binary("weightd")?);
    command.arg("--config").arg(&config).envs(environment.iter().cloned());
    let agent = Process::start(&mut command, &directory.join("agent.log"))?;
    ensure!(
        wait_until(PATIENCE, || UnixStream::connect(&socket).is_ok()),
        "the agent does not listen: {}",
        log(directory, "agent.log")
    );
    Ok(agent)
}

/// What a program has written.
fn log(directory: &Path, name: &str) -> String {
    fs::read_to_string(directory.join(name)).unwrap_or_default()
}

impl Process {
    /// Starts a program that writes its log to a file.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let log = fs::File::create(log)?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let name = command.get_program().to_string_lossy().into_owned();
        command.spawn().map(Self).with_context(|| format!("starting {name}"))
    }

    /// Asks it to end, and makes it when it does not.
    pub fn end(&mut self) {
        // Each of these fails only when it has ended already.
        if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw)
            && matches!(self.0.try_wait(), Ok(None))
        {
            let _ = kill_process(pid, Signal::TERM);
        }
        wait_until(PATIENCE, || !matches!(self.0.try_wait(), Ok(None)));
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}
