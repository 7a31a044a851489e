//! A second start on the same node: from its disk to every tensor in memory.

use std::{path::Path, process::Command};

use anyhow::Result;
use weightd_benches::{Client, Node, binary};

use crate::{
    contest::{Contest, Outcome, Role, Run},
    peers::{fastsafetensors, instanttensor, runai},
    world::{Bucket, Way, World, text},
};

pub(crate) fn measure(world: &World) -> Result<Vec<Outcome>> {
    let bucket = world.bucket(Way::Plain)?;
    let node = world.node(&bucket)?;
    node.mount("model", &["--mode", "bind", "--wait"])?;
    [false, true].into_iter().map(|is_warm| one(world, &bucket, &node, is_warm)).collect()
}

fn one(world: &World, bucket: &Bucket, node: &Node, is_warm: bool) -> Result<Outcome> {
    let (files, volume) = (node.native()?, node.target("model"));
    let (title, limit) = match is_warm {
        true => {
            ("A second start, files in the page cache", "limit: read into memory that is there, nothing kept")
        }
        false => ("A second start, page cache empty", "limit: read past the page cache, nothing kept"),
    };
    let about = "The job is done when a program holds every tensor as a torch tensor. weightd's memory was dropped before, but in the \
                 row that says otherwise.";
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
    let mut contest = Contest::new(title, about, world.tensor_bytes())
        .with(Role::Limit, limit, "", move || {
            let mut reader = Command::new(binary("reader")?);
            reader.arg(if is_warm { "sequential" } else { "direct" }).args(world.shards(here));
            prepared(here)?;
            bucket.run(&mut reader)
        })
        .with(Role::Own, "weightd", "`weightd.open` of the volume's path", move || {
            node.until_forgotten()?;
            world.hold(1)?;
            load(world.client("by_weightd.py", text(there)?, "", &[]), &node.processes())
        });
    for (name, how) in [("safetensors, each tensor copied", "copied"), ("safetensors, each page touched", "")]
    {
        contest = contest.with(Role::Peer, name, "`load_file` of each shard", move || {
            node.until_forgotten()?;
            world.hold(1)?;
            load(world.client("by_safetensors.py", text(here)?, how, &[]), &[])
        });
    }
    if is_warm {
        contest =
            contest.with(Role::Own, "weightd, while another server has the model", "the same", move || {
                node.until_forgotten()?;
                let mut other = world.client("by_weightd.py", text(there)?, "", &[])?;
                other.load()?;
                load(world.client("by_weightd.py", text(there)?, "", &[]), &node.processes())
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
