//! The process that a cluster lives and dies with.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::{fs::DirBuilderExt, net::UnixStream},
    path::PathBuf,
    process::Child,
};

use anyhow::{Context, Result};

use super::{
    cgroups,
    children::{output, until},
    control_plane, image, keys,
    kubernetes::Kubernetes,
    network, node,
    place::{Place, node_name},
};
use crate::mounts;

/// What a runner says once the cluster is up.
const READY: &str = "ready";

/// Waits until a runner that was started says that its cluster is up; whether it did, or ended before.
///
/// # Errors
/// When its stdout is not piped, or cannot be read.
pub fn is_up(runner: &mut Child) -> Result<bool> {
    let mut said = String::new();
    BufReader::new(runner.stdout.take().context("its stdout is piped")?).read_line(&mut said)?;
    Ok(said.trim() == READY)
}

/// What cluster is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// How many nodes.
    pub nodes: u8,
    /// Labels of all nodes, `key=value`.
    pub labels: Vec<String>,
    /// Taints of all nodes from their beginning, `key=value:effect`.
    pub taints: Vec<String>,
    /// Flags for the API server.
    pub api_server: Vec<String>,
    /// End it when whoever started the runner has ended, too: when its standard input does.
    pub with_parent: bool,
}

/// Brings a cluster up, says [`READY`] on stdout, and takes it down at the end of whoever asked for it or at SIGTERM or
/// SIGINT. A cluster that is up already is waited for.
///
/// # Errors
/// When it does not come up; nothing of it is left then.
pub fn run(wanted: &Wanted) -> Result<()> {
    let place = Place::new();
    let lock = lock()?;
    lock.lock().context("waiting for the other cluster's end")?;
    let mut end = listen_for_the_end(wanted.with_parent)?;
    clear(&place);
    let mut running = Running { place, processes: Vec::new(), holders: Vec::new() };
    running.up(wanted)?;
    let mut stdout = std::io::stdout();
    // Whoever does not listen does not want to know.
    let _ = writeln!(stdout, "{READY}").and_then(|()| stdout.flush());
    end.read_exact(&mut [0])?;
    drop(running);
    drop(lock);
    Ok(())
}

/// Where a runner that nobody waits for says what goes wrong.
///
/// # Errors
/// When there is no place for it.
pub fn log() -> Result<PathBuf> {
    Ok(Place::lock()?.with_extension("log"))
}

fn lock() -> Result<fs::File> {
    let path = Place::lock()?;
    fs::File::create(&path).with_context(|| format!("making {}", path.display()))
}

/// Ends the cluster that is up, and removes what a runner that was killed has left.
///
/// # Errors
/// When it cannot be ended.
pub fn stop() -> Result<()> {
    let place = Place::new();
    let runner = fs::read_to_string(place.at("runner")).unwrap_or_default();
    if !runner.is_empty() {
        // One that has ended already is no matter.
        let _ = output(std::process::Command::new("kill").arg(&runner));
    }
    let lock = lock()?;
    lock.lock().context("waiting for the cluster's end")?;
    clear(&place);
    let _ = fs::remove_file(log()?);
    Ok(())
}

/// Gives a byte when it is time to end.
fn listen_for_the_end(with_parent: bool) -> Result<UnixStream> {
    let (end, told) = UnixStream::pair()?;
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT, signal_hook::consts::SIGHUP] {
        signal_hook::low_level::pipe::register(signal, told.try_clone()?)?;
    }
    if with_parent {
        let mut told = told;
        std::thread::spawn(move || {
            // Nobody writes there: it ends with the last process that holds the other end.
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            let _ = told.write_all(b"x");
        });
    }
    Ok(end)
}

/// What runs, ended when dropped.
struct Running {
    place: Place,
    processes: Vec<Child>,
    holders: Vec<Child>,
}

impl Running {
    fn up(&mut self, wanted: &Wanted) -> Result<()> {
        let kubernetes = Kubernetes::get()?;
        let images = image::base()?;
        let place = &self.place;
        fs::DirBuilder::new().mode(0o700).create(place.directory())?;
        fs::write(place.at("runner"), std::process::id().to_string())?;
        network::make()?;
        let keys = keys::make(place, wanted.nodes)?;
        self.processes = control_plane::start_all(place, &kubernetes, &keys, &wanted.api_server)?;
        for number in 1..=wanted.nodes {
            self.holders.push(node::hold(place, number)?);
        }
        let wishes = node::Wishes { labels: wanted.labels.clone(), taints: wanted.taints.clone() };
        for number in 1..=wanted.nodes {
            let holder = place.holder(number).context("the node's first process has ended")?;
            network::introduce(number, holder, wanted.nodes)?;
            node::start_all(place, &kubernetes, number, &wishes, &images)?;
        }
        self.until_ready(&kubernetes, wanted.nodes)
    }

    fn until_ready(&self, kubernetes: &Kubernetes, nodes: u8) -> Result<()> {
        let ask = |line: &str| output(kubernetes.kubectl(&self.place.admin()).args(line.split(' ')));
        for number in 1..=nodes {
            let name = node_name(number);
            until(&format!("{name} is ready"), || {
                ask(&format!("wait --for=condition=Ready --timeout=10s node/{name}"))
                    .with_context(|| format!("see {}", self.place.log(&format!("{name}-kubelet")).display()))
                    .map(drop)
            })?;
        }
        until("pods can be made", || ask("get serviceaccount default").map(drop))
    }
}

impl Drop for Running {
    /// Nodes first, with all that is in them; then who would make it anew.
    fn drop(&mut self) {
        for process in self.holders.iter_mut().chain(&mut self.processes) {
            // Either fails only when the process is gone already.
            let _ = process.kill();
            let _ = process.wait();
        }
        clear(&self.place);
    }
}

/// Removes what is left of a cluster whose processes have ended: they end with their runner.
fn clear(place: &Place) {
    network::remove();
    // What was in a cgroup may take a moment to leave it.
    let gone = until("nothing is left of the cluster", || {
        cgroups::remove();
        mounts::remove_below(place.directory());
        let left: Vec<PathBuf> = cgroups::left();
        anyhow::ensure!(left.is_empty(), "cgroups are left: {left:?}");
        match fs::remove_dir_all(place.directory()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    });
    if let Err(error) = gone {
        crate::skip::say(&format!("warning: {error:#}"));
    }
}
