//! What all jobs share: the model in its bucket, nodes, programs in Python, and runs in turn.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Result, bail};
use weightd_benches::{
    Bucket, Client, Cost, Loaded, Node, Python, Sample, binary, cpu_of, forget_pages_of, gibibytes,
    gigabytes, give_up_memory, hold_memory, run,
};

/// What goes when nobody leases it, so that the next run begins from nothing.
const FORGET: &str = "linger = \"1ms\"";

/// One bucket with one model in it, and what it is measured with.
pub(crate) struct World {
    pub(crate) bucket: Bucket,
    pub(crate) python: Python,
    pub(crate) rounds: usize,
    pub(crate) work: PathBuf,
    pub(crate) with_peers: bool,
}

/// What one program did in all rounds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Runs {
    /// Until everything was there, and what that cost the machine.
    pub(crate) all: Sample,
    /// Seconds until the first tensor.
    pub(crate) first: Vec<f64>,
}

impl Runs {
    pub(crate) fn push(&mut self, (loaded, cost): (Loaded, Cost)) {
        self.all.costs.push(cost);
        self.first.push(loaded.first);
    }
}

impl World {
    /// A node whose tensors go as soon as nobody leases them. `handoff` is added to that section of its configuration.
    pub(crate) fn node(&self, name: &str, handoff: &str) -> Result<Node> {
        self.node_with(name, &format!("{FORGET}\n{handoff}"))
    }

    /// A node that keeps tensors in memory as nodes do, unless `handoff` says otherwise.
    pub(crate) fn node_with(&self, name: &str, handoff: &str) -> Result<Node> {
        let place = self.work.join(name);
        if place.exists() {
            weightd_harness::mounts::remove_below(&place);
            fs::remove_dir_all(&place)?;
        }
        let more = format!("[handoff]\n{handoff}");
        Node::start_with_memory(&place, &self.bucket.gcs.endpoint(), &more, self.resident_limit())
    }

    /// Room for the model, and for one that has not gone yet.
    fn resident_limit(&self) -> u64 {
        2 * self.bucket.model.tensor_bytes + (1 << 30)
    }

    /// A program in Python that is ready to load a model.
    pub(crate) fn client(&self, script: &str, source: &str, how: &str) -> Result<Client> {
        self.client_with(script, source, how, &[])
    }

    /// The same with an environment.
    pub(crate) fn client_with(
        &self,
        script: &str,
        source: &str,
        how: &str,
        environment: &[(&str, &str)],
    ) -> Result<Client> {
        let published = self.bucket.model.directory.display().to_string();
        Client::start(&self.python, script, &[source, &published, how], environment)
    }

    /// The model's files of weights below a directory.
    pub(crate) fn shards(&self, directory: &Path) -> Vec<PathBuf> {
        let shards = self.bucket.model.files.iter().filter(|name| name.ends_with(".safetensors"));
        shards.map(|name| directory.join(name)).collect()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bucket.model.tensor_bytes
    }

    pub(crate) fn gigabytes(&self) -> f64 {
        gigabytes(self.bytes())
    }

    pub(crate) fn gibibytes(&self) -> f64 {
        gibibytes(self.bytes())
    }

    /// Has the files of a directory in the page cache, where the kernel does not let go of them first.
    pub(crate) fn warm(&self, directory: &Path) -> Result<()> {
        // What is read once goes before what is read twice.
        for _ in 0..2 {
            run(Command::new(binary("reader")?).arg("sequential").args(self.shards(directory)))?;
        }
        Ok(())
    }

    /// Nothing of a directory's weights is in the page cache.
    pub(crate) fn cool(&self, directory: &Path) -> Result<()> {
        rustix::fs::sync();
        self.shards(directory).iter().try_for_each(|path| forget_pages_of(path))
    }

    /// Holds memory for so many copies of the model while a run is prepared, so that nobody pays for having it from the
    /// hypervisor. To be said when what the last run had is gone.
    pub(crate) fn hold(&self, copies: u64) -> Result<()> {
        hold_memory(&self.work, copies * self.bytes() + (1 << 30))
    }

    /// Gives up what was held: the run begins.
    pub(crate) fn give_up(&self) -> Result<()> {
        give_up_memory(&self.work)
    }
}

/// Processor time of programs, and of a node if one works for them.
pub(crate) fn cpu(clients: &[Client], node: Option<&Node>) -> Result<Duration> {
    let own: Duration = clients.iter().map(|client| cpu_of(client.pid())).sum::<Result<_>>()?;
    Ok(own + node.map_or(Ok(Duration::ZERO), Node::cpu)?)
}

/// Times a program's loading.
pub(crate) fn timed(client: &mut Client, node: Option<&Node>) -> Result<(Loaded, Cost)> {
    let clients = std::slice::from_mut(client);
    let before = cpu(clients, node)?;
    let loaded = clients[0].load()?;
    let cpu = cpu(clients, node)?.saturating_sub(before);
    Ok((loaded, Cost { wall: Duration::from_secs_f64(loaded.seconds), cpu, peak_bytes: 0 }))
}

/// The order in which to run so many of something in a round: whoever goes first has the quieter machine.
pub(crate) fn order(count: usize, round: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |at| (at + round) % count)
}

/// Text of a path for a program's arguments.
pub(crate) fn text(path: &Path) -> Result<&str> {
    match path.to_str() {
        Some(text) => Ok(text),
        None => bail!("{} is not UTF-8", path.display()),
    }
}
