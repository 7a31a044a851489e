//! A cluster as tests use it.

use std::{
    ffi::OsStr,
    io::Write,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};

use super::{
    children::output,
    given::Given,
    image,
    kubernetes::Kubernetes,
    node,
    place::{HOST, Place},
    runner::{self, Wanted},
};
use crate::{Unready, binary};

/// Programs of Debian that a cluster is made of, and their packages.
const PROGRAMS: [(&str, &str); 5] = [
    ("/usr/bin/containerd", "containerd"),
    ("/usr/sbin/runc", "runc"),
    ("/usr/lib/cni/ptp", "containernetworking-plugins"),
    ("/bin/busybox", "busybox-static"),
    ("/usr/bin/nsenter", "util-linux"),
];

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    kubectl: Option<Kubernetes>,
    kubeconfig: PathBuf,
    whose: Whose,
}

#[derive(Debug)]
enum Whose {
    /// The runner; none when it was started by hand, and stays.
    Ours(Option<Child>),
    Given(Given),
}

/// A node of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name for Kubernetes.
    pub name: String,
    /// The process that holds its namespaces, when it is ours.
    holder: Option<u32>,
}

impl Cluster {
    /// Starts one that ends with this value, or with this process however that ends; or takes the one that the
    /// environment names, which must have as many nodes. The first time on a machine, Kubernetes is built: ten minutes.
    ///
    /// # Errors
    /// When the machine lacks what it takes, or it does not come up.
    pub fn start(wanted: &Wanted) -> Result<Self, Unready> {
        let failed = |error: anyhow::Error| Unready::failed("the cluster", &format!("{error:#}"));
        if let Some((kubeconfig, given)) = Given::from_environment().map_err(failed)? {
            let cluster = Self { kubectl: None, kubeconfig: kubeconfig.into(), whose: Whose::Given(given) };
            let shell = Path::new("/bin/busybox");
            if shell.exists() {
                let archives = image::base().map_err(failed)?;
                archives.iter().try_for_each(|archive| cluster.load(archive)).map_err(failed)?;
            }
            return Ok(cluster);
        }
        possible()?;
        let kubernetes = Kubernetes::get()?;
        let runner = started(wanted).map_err(failed)?;
        Ok(Self::ours(kubernetes, Some(runner)))
    }

    /// The one that someone started by hand, and that stays.
    ///
    /// # Errors
    /// When there is none.
    pub fn running() -> Result<Self> {
        let admin = Place::new().admin();
        anyhow::ensure!(admin.exists(), "no cluster is up: `cargo xtask cluster up`");
        Ok(Self::ours(Kubernetes::get()?, None))
    }

    fn ours(kubernetes: Kubernetes, runner: Option<Child>) -> Self {
        Self { kubectl: Some(kubernetes), kubeconfig: Place::new().admin(), whose: Whose::Ours(runner) }
    }

    /// `kubectl` as administrator.
    pub fn kubectl(&self) -> Command {
        match &self.kubectl {
            Some(kubernetes) => kubernetes.kubectl(&self.kubeconfig),
            None => {
                let mut command = Command::new("kubectl");
                command.env("KUBECONFIG", &self.kubeconfig);
                command
            }
        }
    }

    /// What `kubectl` writes to stdout, of words that must succeed; an error has what it wrote to stderr.
    ///
    /// # Errors
    /// When it fails.
    pub fn ask(&self, words: &[&str]) -> Result<String> {
        output(self.kubectl().args(words))
    }

    /// Has `kubectl` make of a text on its stdin what words say, which must succeed.
    ///
    /// # Errors
    /// When it fails; what it wrote to stderr stands above.
    pub fn give(&self, words: &[&str], text: &str) -> Result<()> {
        let mut kubectl = self.kubectl();
        let mut child = kubectl.args(words).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        child.stdin.take().context("it is piped")?.write_all(text.as_bytes())?;
        let status = child.wait()?;
        anyhow::ensure!(status.success(), "`kubectl {}` failed ({status})", words.join(" "));
        Ok(())
    }

    /// Where clients of the API server find it and who they are.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A directory that is removed with the cluster; the machine's temporary one where the cluster is someone else's.
    pub fn directory(&self) -> PathBuf {
        match &self.whose {
            Whose::Ours(_) => Place::new().directory().to_owned(),
            Whose::Given(_) => std::env::temp_dir(),
        }
    }

    /// The address at which pods reach servers of this machine.
    pub fn host(&self) -> IpAddr {
        match &self.whose {
            Whose::Ours(_) => HOST.into(),
            Whose::Given(given) => given.host,
        }
    }

    /// Its nodes, by name.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub fn nodes(&self) -> Result<Vec<Node>> {
        let names = self.ask(&["get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"])?;
        let place = Place::new();
        let holder = |name: &str| match &self.whose {
            Whose::Ours(_) => place.holder(name.strip_prefix("node")?.parse().ok()?),
            Whose::Given(_) => None,
        };
        Ok(names.split(' ').map(|name| Node { name: name.to_owned(), holder: holder(name) }).collect())
    }

    /// A command in a node's namespaces, as root.
    pub fn command(&self, node: &Node, program: impl AsRef<OsStr>) -> Command {
        match (&self.whose, node.holder) {
            (Whose::Given(given), _) => given.command(&node.name, program.as_ref()),
            (Whose::Ours(_), holder) => node::command(holder.unwrap_or_default(), program),
        }
    }

    /// Loads an image into all nodes.
    ///
    /// # Errors
    /// When a node cannot read it.
    pub fn load(&self, archive: &Path) -> Result<()> {
        match &self.whose {
            Whose::Given(given) => given.load(archive),
            Whose::Ours(_) => self
                .nodes()?
                .iter()
                .try_for_each(|node| node::load(node.holder.context("the node has ended")?, archive)),
        }
    }

    /// Ends a node's kubelet and starts it again.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart_kubelet(&self, node: &Node) -> Result<()> {
        match node.holder {
            Some(holder) => node::restart_kubelet(&Place::new().at(&node.name), holder),
            None => output(self.command(node, "systemctl").args(["restart", "kubelet"])).map(drop),
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let Whose::Ours(Some(runner)) = &mut self.whose else { return };
        // Its standard input ends, which tells it to end; and it is waited for.
        drop(runner.stdin.take());
        let _ = runner.wait();
    }
}

/// Whether a cluster can be made here.
fn possible() -> Result<(), Unready> {
    for (program, package) in PROGRAMS {
        if !Path::new(program).exists() {
            return Err(Unready::NotInstalled { what: package.to_owned(), path: program.into() });
        }
    }
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Unready::NotAllowed { what: "a Kubernetes cluster".to_owned(), why: "it needs root".to_owned() })
}

/// The runner, once the cluster is up.
fn started(wanted: &Wanted) -> Result<Child> {
    let mut command = Command::new(binary("test-kubernetes"));
    command.args(["run", "--with-parent", "--nodes", &wanted.nodes.to_string()]);
    for (flag, values) in
        [("--label", &wanted.labels), ("--taint", &wanted.taints), ("--api-server", &wanted.api_server)]
    {
        values.iter().for_each(|value| {
            command.arg(format!("{flag}={value}"));
        });
    }
    let mut runner = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    if runner::is_up(&mut runner)? {
        return Ok(runner);
    }
    anyhow::bail!("its runner ended ({}); what it said stands above", runner.wait()?)
}
