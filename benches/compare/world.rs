//! What all jobs share: the model, buckets that have it, programs in Python, nodes.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use weightd_benches::{
    BUCKET, Client, Cost, Node, Python, binary, cpu_of, forget_pages_of, forget_peak_of, gigabytes,
    give_up_memory, hold_memory, peak_together, run,
};
use weightd_harness::{
    BucketOptions, BucketProcess, Model, ModelShape, Placed, Shape, TensorDigest, mounts, tensor_digests,
};

use crate::{
    contest::{Run, Terms},
    peers,
};

/// What goes when nobody leases it, so that the next run begins from nothing.
const FORGET: &str = "[handoff]\nlinger = \"1ms\"";

/// The model, and what it is measured with.
pub(crate) struct World {
    pub(crate) model: Model,
    pub(crate) digests: BTreeMap<String, TensorDigest>,
    pub(crate) terms: Terms,
    pub(crate) with_peers: bool,
    python: Python,
    work: PathBuf,
}

/// How a bucket answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// As fast as it can, over HTTP.
    Plain,
    /// As fast as it can, over TLS.
    Tls,
    /// As a real one does, over TLS.
    Shaped,
}

/// A bucket with the model in it, in a process of its own. Gone when dropped.
pub(crate) struct Bucket {
    server: BucketProcess,
    endpoint: String,
    /// How many requests at once bring most of what it gives.
    requests: &'static str,
}

impl Way {
    pub(crate) const ALL: [Self; 3] = [Self::Plain, Self::Tls, Self::Shaped];

    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Plain => "plain HTTP",
            Self::Tls => "TLS",
            Self::Shaped => "shaped, TLS",
        }
    }
}

impl World {
    pub(crate) fn make(work: &Path, shape: &ModelShape, terms: Terms, with_peers: bool) -> Result<Self> {
        let python = Python::find(work)?;
        let place = work.join("model");
        if place.exists() {
            fs::remove_dir_all(&place)?;
        }
        let model = Model::write(&place, shape)?;
        let digests = tensor_digests(&model.directory)?;
        Ok(Self { model, digests, terms, with_peers, python, work: work.to_owned() })
    }

    /// The same with another model, of about so many bytes, in a place of its own.
    pub(crate) fn of_bytes(&self, bytes: u64, name: &str) -> Result<Self> {
        let work = self.work.join(name);
        fs::create_dir_all(&work)?;
        Self::make(&work, &ModelShape::of_bytes(bytes), self.terms.clone(), self.with_peers)
    }

    /// A bucket that has a directory as `gs://bench/model`.
    pub(crate) fn bucket_of(&self, directory: &Path) -> Result<Bucket> {
        self.serve(directory, Way::Plain)
    }

    /// A bucket that has the model as `gs://bench/model`.
    pub(crate) fn bucket(&self, way: Way) -> Result<Bucket> {
        self.serve(&self.model.directory, way)
    }

    fn serve(&self, directory: &Path, way: Way) -> Result<Bucket> {
        let shape = if way == Way::Shaped { Shape::like_a_bucket() } else { Shape::default() };
        let tls = if way == Way::Plain { None } else { Some(self.fresh("certificates")?) };
        let bucket = Bucket::start(directory, BucketOptions { tls, shape, ..BucketOptions::default() })?;
        Ok(Bucket { requests: if way == Way::Shaped { "16" } else { bucket.requests }, ..bucket })
    }

    /// Length of all files in bytes.
    pub(crate) fn file_bytes(&self) -> Result<u64> {
        self.model.file_bytes()
    }

    pub(crate) fn tensor_bytes(&self) -> u64 {
        self.model.tensor_bytes
    }

    pub(crate) fn gigabytes(&self) -> f64 {
        gigabytes(self.model.tensor_bytes)
    }

    /// The interpreter, and its packages.
    pub(crate) fn python(&self) -> &Python {
        &self.python
    }

    pub(crate) fn versions(&self) -> Result<String> {
        let peers = if self.with_peers { peers::versions() } else { String::new() };
        Ok(format!("{}{peers}", self.python.versions()?))
    }

    /// An empty directory; what the last run left is gone and its blocks are free.
    pub(crate) fn fresh(&self, name: &str) -> Result<PathBuf> {
        let directory = self.work.join(name);
        mounts::remove_below(&directory);
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir_all(&directory)?;
        // Freed blocks are discarded in the background; without this the next run would pay for the last one.
        run(Command::new("sync").arg("-f").arg(&directory))?;
        Ok(directory)
    }

    /// A node whose tensors go as soon as nobody leases them.
    pub(crate) fn node(&self, bucket: &Bucket) -> Result<Node> {
        self.node_with(bucket, FORGET)
    }

    /// A node with more in its configuration.
    pub(crate) fn node_with(&self, bucket: &Bucket, more: &str) -> Result<Node> {
        let place = self.fresh("node")?;
        let limit = 2 * self.model.tensor_bytes + (1 << 30);
        Node::start_in(&place, bucket.environment(), more, limit)
    }

    /// A program in Python that loads a model once it has imported what it needs, and can compare it.
    pub(crate) fn client(
        &self,
        script: &str,
        source: &str,
        how: &str,
        environment: &[(&str, &str)],
    ) -> Result<Client> {
        self.start(&self.python, script, source, how, environment)
    }

    /// The same that trusts a bucket's authority, whatever it reads it by.
    pub(crate) fn client_of(
        &self,
        bucket: &Bucket,
        script: &str,
        source: &str,
        how: &str,
        environment: &[(&str, &str)],
    ) -> Result<Client> {
        let python = self.python.clone();
        let python = match bucket.ca_file() {
            Some(ca) => python.trusting(ca),
            None => python,
        };
        self.start(&python, script, source, how, environment)
    }

    fn start(
        &self,
        python: &Python,
        script: &str,
        source: &str,
        how: &str,
        environment: &[(&str, &str)],
    ) -> Result<Client> {
        let published = self.model.directory.display().to_string();
        Client::spawn(python, script, &[source, &published, how], environment)
    }

    /// The model's files of weights below a directory.
    pub(crate) fn shards(&self, directory: &Path) -> Vec<PathBuf> {
        let shards = self.model.files.iter().filter(|name| name.ends_with(".safetensors"));
        shards.map(|name| directory.join(name)).collect()
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

    /// What comes from a bucket by nothing but Google's own client, told what to do with it.
    pub(crate) fn floor(&self, bucket: &Bucket, what_then: &str) -> Result<Run> {
        self.have(1)?;
        bucket.run(bucket.floor()?.arg(what_then))
    }

    /// What lies or is shown in a directory has the model's tensors.
    pub(crate) fn check(&self, directory: &Path) -> Result<()> {
        let found = tensor_digests(directory)?;
        ensure!(found == self.digests, "tensors of {} are not the model's", directory.display());
        Ok(())
    }

    /// The machine has memory for so many copies of the model, for whoever wants it next: nobody pays for having it from the
    /// hypervisor.
    pub(crate) fn have(&self, copies: u64) -> Result<()> {
        self.have_with(copies, &mut [])
    }

    /// The same, and programs that were just started have imported everything.
    pub(crate) fn have_with(&self, copies: u64, clients: &mut [Client]) -> Result<()> {
        hold_memory(&self.work, copies * self.model.tensor_bytes + (1 << 30))?;
        let ready = clients.iter_mut().try_for_each(Client::until_ready);
        // Not before: the kernel gives free memory back after some seconds.
        give_up_memory(&self.work)?;
        ready
    }
}

impl Bucket {
    /// One that has a directory as `gs://bench/model`.
    pub(crate) fn start(directory: &Path, options: BucketOptions) -> Result<Self> {
        let (bucket, prefix) = (BUCKET.to_owned(), "model".to_owned());
        let place = vec![Placed { bucket, prefix, directory: directory.to_owned() }];
        let server = wait(BucketProcess::start(&BucketOptions { place, ..options }))?;
        let endpoint = server.endpoint();
        Ok(Self { server, endpoint, requests: "8" })
    }

    /// Scheme, host and port, without a slash at the end.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Google's own client and nothing else, which has to be told what becomes of what arrives.
    pub(crate) fn floor(&self) -> Result<Command> {
        let mut floor = self.command(binary("floor")?);
        floor.args(["--bucket", BUCKET, "--prefix", "model", "--requests", self.requests]);
        Ok(floor)
    }

    /// What clients must trust, if it speaks TLS.
    pub(crate) fn ca_file(&self) -> Option<&Path> {
        self.server.ca_file()
    }

    /// Bytes of objects that it has sent.
    pub(crate) fn sent(&self) -> Result<u64> {
        wait(self.server.bytes_sent())
    }

    /// Its process, for measuring.
    pub(crate) fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// What its clients have in their environment.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        let ca = self.ca_file().map(|path| ("SSL_CERT_FILE", path.display().to_string()));
        [("STORAGE_EMULATOR_HOST", self.endpoint().to_owned())].into_iter().chain(ca).collect()
    }

    /// A command that talks to this bucket.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.envs(self.environment());
        command
    }

    /// Runs a program to its end.
    pub(crate) fn run(&self, command: &mut Command) -> Result<Run> {
        let before = self.sent()?;
        let cost = run(command)?;
        Ok(Run {
            wall: cost.wall.as_secs_f64(),
            cpu: cost.cpu.as_secs_f64(),
            peak_bytes: Some(cost.peak_bytes),
            origin_bytes: self.sent()? - before,
            ..Run::default()
        })
    }

    /// Does something, while processes work for it.
    pub(crate) fn timed(&self, helpers: &[u32], job: impl FnOnce() -> Result<Cost>) -> Result<Run> {
        helpers.iter().try_for_each(|pid| forget_peak_of(*pid))?;
        let (started, sent, before) = (Instant::now(), self.sent()?, cpu(helpers)?);
        let cost = job()?;
        Ok(Run {
            wall: started.elapsed().as_secs_f64(),
            cpu: (cost.cpu + cpu(helpers)?.saturating_sub(before)).as_secs_f64(),
            peak_bytes: Some(cost.peak_bytes + peak_together(helpers)?),
            origin_bytes: self.sent()? - sent,
            ..Run::default()
        })
    }

    /// Has programs load at the same moment, while other processes work for them.
    pub(crate) fn load(&self, clients: &mut [Client], helpers: &[u32]) -> Result<Run> {
        let all: Vec<u32> = clients.iter().map(Client::pid).chain(helpers.iter().copied()).collect();
        all.iter().try_for_each(|pid| forget_peak_of(*pid))?;
        let (started, sent, before) = (Instant::now(), self.sent()?, cpu(&all)?);
        clients.iter_mut().try_for_each(Client::begin)?;
        let mut first = Vec::new();
        for client in clients.iter_mut() {
            first.push(client.loaded()?.first);
        }
        let wall = started.elapsed().as_secs_f64();
        Ok(Run {
            wall,
            first: first.into_iter().reduce(f64::max),
            cpu: cpu(&all)?.saturating_sub(before).as_secs_f64(),
            peak_bytes: Some(peak_together(&all)?),
            origin_bytes: self.sent()? - sent,
            ..Run::default()
        })
    }
}

/// Jobs are told from start to end, and wait for whatever they need.
pub(crate) fn wait<T>(what: impl Future<Output = T>) -> T {
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(what))
}

/// Processor time of processes.
fn cpu(pids: &[u32]) -> Result<Duration> {
    pids.iter().map(|pid| cpu_of(*pid)).sum()
}

/// Text of a path for a program's arguments.
pub(crate) fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
