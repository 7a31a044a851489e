//! A second start on the same node: from its disk to every tensor in memory.

use std::{path::PathBuf, process::Command};

use anyhow::{Result, ensure};
use weightd_benches::{Client, Node, binary};

use crate::{
    contest::{Contest, Outcome, Role, Run},
    peers::{fastsafetensors, instanttensor, runai},
    world::{Bucket, Way, World, text},
};

/// Longer than a server takes to end and another to begin, and shorter than anyone wants to wait.
const LINGER: &str = "[handoff]\nlinger = \"2s\"";

const DROPPED: &str = "a copy, where nothing is in its memory any more: weightd reads what the page cache has into memory that can be \
                       pinned, and sums it; a program that maps the files copies nothing, and cannot pin. Until then, for ten \
                       minutes by default, weightd is first.";

const BOUND: &str = "the disk, of which all three take nearly all there is; who is first changes from round to round. Of what is read \
                     last, up to 128 MiB that a virtual disk answers at once, weightd has the sums to compare when the disk is done: \
                     shorter requests towards the end would hide that.";

/// A node that has the model.
struct Second<'w> {
    world: &'w World,
    node: Node,
    bucket: Bucket,
    /// The model's files in the store, which peers read.
    files: PathBuf,
    /// The volume that shows them.
    volume: PathBuf,
}

/// Where the files of weights are before a run.
#[derive(Clone, Copy)]
enum Files {
    OnDisk,
    InPageCache,
}

pub(crate) fn measure(world: &World) -> Result<Vec<Outcome>> {
    let bucket = world.bucket(Way::Plain)?;
    let node = world.node_with(&bucket, LINGER)?;
    let volume = node.mount("model", &["--mode", "bind", "--wait"])?;
    let second = Second { world, bucket, files: node.native()?, node, volume };
    Ok(vec![second.cold()?, second.warm()?])
}

impl Second<'_> {
    fn cold(&self) -> Result<Outcome> {
        let about = "The job is done when a program holds every tensor as a torch tensor. Nothing is in memory, neither pages of the \
                     files nor weightd's own.";
        let contest = self
            .contest("A second start, page cache empty", about)
            .with(Role::Limit, "limit: read past the page cache, nothing kept", "", || {
                self.read(Files::OnDisk)
            })
            .with(Role::Own, "weightd", "`weightd.open` of the volume's path", || {
                self.load(|| self.borrower("ordered"), &self.node.processes(), Files::OnDisk)
            });
        self.with_peers(contest, Files::OnDisk).bounded_by(BOUND).hold(&self.world.terms)
    }

    fn warm(&self) -> Result<Outcome> {
        let about = "The job is done when a program holds every tensor as a torch tensor. The files are in the page cache.";
        let contest = self
            .contest("A second start, memory warm", about)
            .with(Role::Limit, "limit: read into new memory", "", || self.read(Files::InPageCache))
            .with(
                Role::Own,
                "weightd",
                "`weightd.open` of the volume's path; the tensors of the server that ended are still there, as they are for 10 \
                 minutes unless memory is short",
                || self.take_over(),
            )
            .with(
                Role::Own,
                "weightd, its memory dropped",
                "the same later; the files are still in the page cache",
                || self.load(|| self.borrower("ordered"), &self.node.processes(), Files::InPageCache),
            );
        self.with_peers(contest, Files::InPageCache).bounded_by(DROPPED).hold(&self.world.terms)
    }

    fn contest<'c>(&'c self, title: &str, about: &str) -> Contest<'c> {
        Contest::new(title, about, self.world.tensor_bytes())
    }

    fn with_peers<'c>(&'c self, mut contest: Contest<'c>, files: Files) -> Contest<'c> {
        let world = self.world;
        for (name, how) in
            [("safetensors, each tensor copied", "copied"), ("safetensors, each page touched", "")]
        {
            let start = move || world.client("by_safetensors.py", text(&self.files)?, how, &[]);
            contest = contest
                .with(Role::Peer, name, "`load_file` of each shard", move || self.load(start, &[], files));
        }
        if world.with_peers {
            type Start = fn(&World, &str) -> Result<Client>;
            let peers: [(&str, &str, Start); 3] = [
                ("runai-model-streamer", runai::SETTINGS, runai::of_files),
                ("fastsafetensors", fastsafetensors::SETTINGS, fastsafetensors::of_files),
                ("instanttensor", instanttensor::SETTINGS, instanttensor::of_files),
            ];
            for (name, settings, start) in peers {
                let start = move || start(world, text(&self.files)?);
                contest = contest.with(Role::Peer, name, settings, move || self.load(start, &[], files));
            }
        }
        contest
    }

    /// What the machine gives of these files at most.
    fn read(&self, files: Files) -> Result<Run> {
        let how = match files {
            Files::OnDisk => "direct",
            Files::InPageCache => "kept",
        };
        let mut reader = Command::new(binary("reader")?);
        reader.arg(how).args(self.world.shards(&self.files));
        self.prepare(files, &mut [])?;
        self.bucket.run(&mut reader)
    }

    /// A program that is started has the model, with the help of others, when nothing of it is in weightd's own memory.
    fn load(&self, start: impl Fn() -> Result<Client>, helpers: &[u32], files: Files) -> Result<Run> {
        let mut clients = [start()?];
        self.prepare(files, &mut clients)?;
        let run = self.bucket.load(&mut clients, helpers)?;
        clients[0].check()?;
        Ok(run)
    }

    /// A program has what another had, which has just ended.
    fn take_over(&self) -> Result<Run> {
        let (mut last, mut next) = (self.borrower("touched")?, [self.borrower("touched")?]);
        [&mut last, &mut next[0]].into_iter().try_for_each(Client::until_ready)?;
        last.load()?;
        drop(last);
        ensure!(self.node.metric("weightd_expose_resident_bytes")? > 0, "the tensors are gone already");
        let run = self.bucket.load(&mut next, &self.node.processes())?;
        next[0].check()?;
        Ok(run)
    }

    fn borrower(&self, how: &str) -> Result<Client> {
        self.world.client("by_weightd.py", text(&self.volume)?, how, &[])
    }

    /// Nothing is in weightd's memory, files are where they are to be, there is memory for a copy and for what of the page cache is yet to
    /// come, and programs that were just started are ready.
    fn prepare(&self, files: Files, clients: &mut [Client]) -> Result<()> {
        self.node.until_forgotten()?;
        let copies = match files {
            Files::OnDisk => {
                self.world.cool(&self.files)?;
                2
            }
            Files::InPageCache => {
                self.world.warm(&self.files)?;
                1
            }
        };
        self.world.have_with(copies, clients)
    }
}
