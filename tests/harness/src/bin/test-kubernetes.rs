//! `cargo xtask cluster`: a real Kubernetes on this machine.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "its words are its job")]

use std::{
    env,
    os::unix::process::CommandExt,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result, bail};
use weightd_harness::cluster::{
    Cluster,
    kubernetes::Kubernetes,
    provisioner,
    runner::{self, Wanted},
};

const USAGE: &str = "\
Usage: cargo xtask cluster COMMAND

  build                build Kubernetes and its csi-provisioner, once per machine: twelve minutes on two cores
  up [NODES] [FLAG...] start a cluster that stays up, of one node if no number is given
                       --label=KEY=VALUE, --taint=KEY=VALUE:EFFECT: of every node; --api-server=FLAG: for the API server
  down                 end it
  kubectl ARG...       kubectl, as administrator
  node NUMBER ARG...   run a command in a node, such as `findmnt`
  load ARCHIVE...      load images into all nodes
  restart-kubelet NUMBER
";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (command, rest) = arguments.split_first().map_or(("", [].as_slice()), |(first, rest)| (first, rest));
    let done = match command {
        "build" => Kubernetes::get().and_then(|_| provisioner::build()).map_err(Into::into),
        "run" => wanted(rest).and_then(|wanted| runner::run(&wanted)),
        "up" => up(rest),
        "down" => runner::stop(),
        "kubectl" => kubectl(rest),
        "node" => within(rest),
        "load" => load(rest),
        "restart-kubelet" => restart_kubelet(rest),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(64);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn wanted(arguments: &[String]) -> Result<Wanted> {
    let mut wanted = Wanted { nodes: 1, ..Wanted::default() };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.split_once('=') {
            Some(("--label", value)) => wanted.labels.push(value.to_owned()),
            Some(("--taint", value)) => wanted.taints.push(value.to_owned()),
            Some(("--api-server", value)) => wanted.api_server.push(value.to_owned()),
            _ if argument == "--with-parent" => wanted.with_parent = true,
            _ if argument == "--nodes" => {
                wanted.nodes = arguments.next().context("--nodes wants a number")?.parse()?;
            }
            _ => wanted.nodes = argument.parse().with_context(|| format!("{argument} is not understood"))?,
        }
    }
    if !(1..=100).contains(&wanted.nodes) {
        bail!("a cluster has 1 to 100 nodes");
    }
    Ok(wanted)
}

/// Starts this program again, with no terminal and no parent to end with.
fn up(arguments: &[String]) -> Result<()> {
    wanted(arguments)?;
    if Cluster::running().is_ok() {
        bail!("a cluster is up: `cargo xtask cluster down` ends it");
    }
    let log = runner::log()?;
    let words = std::fs::File::create(&log).with_context(|| format!("writing {}", log.display()))?;
    let mut command = Command::new("setsid");
    command.arg(env::current_exe()?).arg("run").args(arguments);
    let mut runner = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(words).spawn()?;
    if !runner::is_up(&mut runner)? {
        bail!("{}", std::fs::read_to_string(&log)?.trim_end());
    }
    let cluster = Cluster::running()?;
    println!("export KUBECONFIG={}", cluster.kubeconfig().display());
    kubectl(&["get", "nodes"].map(str::to_owned))
}

/// Becomes kubectl, so that its signals and its exit code are ours.
fn kubectl(arguments: &[String]) -> Result<()> {
    Err(Cluster::running()?.kubectl().args(arguments).exec().into())
}

fn within(arguments: &[String]) -> Result<()> {
    let (number, program, rest) = match arguments {
        [number, program, rest @ ..] => (number, program, rest),
        _ => bail!("say which node, and what to run in it"),
    };
    let cluster = Cluster::running()?;
    Err(cluster.command(&node(&cluster, number)?, program).args(rest).exec().into())
}

fn load(archives: &[String]) -> Result<()> {
    let cluster = Cluster::running()?;
    archives.iter().try_for_each(|archive| cluster.load(archive.as_ref()))
}

fn restart_kubelet(arguments: &[String]) -> Result<()> {
    let cluster = Cluster::running()?;
    cluster.restart_kubelet(&node(&cluster, arguments.first().context("say which node")?)?)
}

fn node(cluster: &Cluster, number: &str) -> Result<weightd_harness::cluster::Node> {
    let name = format!("node{}", number.trim_start_matches("node"));
    let found = cluster.nodes()?.into_iter().find(|node| node.name == name);
    found.with_context(|| format!("there is no {name}"))
}
