//! A second start on the same node: from its disk to every tensor in memory.

use std::{path::Path, process::Command};

use anyhow::Result;
use weightd_benches::{Client, Node, binary};

use crate::{
    contest::{Contest, Outcome, Role, Run},
    peers::{fastsafetensors, instanttensor, runai},
    world::{Bucket, Way, World, text},
};

/// Longer than a server takes to end and another to begin, and shorter than anyone wants to wait.
const LINGER: &str = "[handoff]\nlinger = \"5s\"";

pub(crate) fn measure(world: &World) -> Result<Vec<Outcome>> {
    let bucket = world.bucket(Way::Plain)?;
    let node = world.node_with(&bucket, LINGER)?;
    node.mount("model", &["--mode", "bind", "--wait"])?;
    [false, true].into_iter().map(|is_warm| one(world, &bucket, &node, is_warm)).collect()
}

fn one(world: &World, bucket: &Bucket, node: &Node, is_warm: bool) -> Result<Outcome> {
    let (files, volume) = (node.native()?, node.target("model"));
    let (title, about, limit) = match is_warm {
        true => (
            "A second start, memory warm",
            "The job is done when a program holds every tensor as a torch tensor. The files are in the page cache.",
            "limit: read into memory that is there, nothing kept",
        ),
        false => (
            "A second start, page cache empty",
            "The job is done when a program holds every tensor as a torch tensor. Nothing is in memory, neither pages of the files nor \
             weightd's own.",
            "limit: read past the page cache, nothing kept",
        ),
    };
    let prepared = move |files: &Path| if is_warm { world.warm(files) } else { world.cool(files) };
    let (here, there) = (&files, &volume);
    let load = move |client: Result<Client>, helpers: &[u32]| -> Result<Run> {
        let mut clients = [client?];
        prepared(here)?;
        world.give_up()?;
        let run = bucket.load(&mut clients, helpers)?;
        clients[0].check()?;
        Ok(run)
    };
    let borrower = move || world.client("by_weightd.py", text(there)?, "", &[]);
    let mut contest =
        Contest::new(title, about, world.tensor_bytes()).with(Role::Limit, limit, "", move || {
            let mut reader = Command::new(binary("reader")?);
            reader.arg(if is_warm { "sequential" } else { "direct" }).args(world.shards(here));
            prepared(here)?;
            bucket.run(&mut reader)
        });
    if is_warm {
        let settings = "`weightd.open` of the volume's path; the tensors of the server that ended are still there, as they are for \
                        10 minutes unless memory is short";
        contest = contest.with(Role::Own, "weightd", settings, move || {
            let (mut last, mut next) = (borrower()?, [borrower()?]);
            last.load()?;
            drop(last);
            let run = bucket.load(&mut next, &node.processes())?;
            next[0].check()?;
            Ok(run)
        });
    }
    let (name, settings) = match is_warm {
        true => ("weightd, its memory dropped", "the same later; the files are still in the page cache"),
        false => ("weightd", "`weightd.open` of the volume's path"),
    };
    contest = contest.with(Role::Own, name, settings, move || {
        node.until_forgotten()?;
        world.hold(1)?;
        load(borrower(), &node.processes())
    });
    for (name, how) in [("safetensors, each tensor copied", "copied"), ("safetensors, each page touched", "")]
    {
        contest = contest.with(Role::Peer, name, "`load_file` of each shard", move || {
            node.until_forgotten()?;
            world.hold(1)?;
            load(world.client("by_safetensors.py", text(here)?, how, &[]), &[])
        });
    }
    if world.with_peers {
        type Start = fn(&World, &str) -> Result<Client>;
        let peers: [(&str, &str, Start); 3] = [
            ("runai-model-streamer", runai::SETTINGS, runai::of_files),
            ("fastsafetensors", fastsafetensors::SETTINGS, fastsafetensors::of_files),
            ("instanttensor", instanttensor::SETTINGS, instanttensor::of_files),
        ];
        for (name, settings, start) in peers {
            contest = contest.with(Role::Peer, name, settings, move || {
                node.until_forgotten()?;
                world.hold(1)?;
                load(start(world, text(here)?), &[])
            });
        }
    }
    contest.hold(&world.terms)
}
