//! Files on the disk that nobody has read, and how long it takes to have every tensor in memory.

use std::{path::Path, process::Command};

use anyhow::Result;
use weightd_benches::{Cost, Loaded, Node, Sample, Table, binary, run};

use crate::world::{Runs, World, order, text, timed};

pub(crate) fn measure(world: &World) -> Result<String> {
    let node = world.node("cold", "")?;
    node.mount("model", &["--mode", "bind"])?;
    let count = if world.with_peers { 3 } else { 2 };
    let (mut limit, mut own, mut peer) = (Sample::default(), Runs::default(), Runs::default());
    for round in 0..world.rounds {
        eprintln!("from the disk, round {}", round + 1);
        for at in order(count, round) {
            node.until_forgotten()?;
            match at {
                0 => limit.costs.push(read(world, &node)?),
                1 => own.push(load(world, &node, "by_weightd.py", &node.target("model"))?),
                _ => peer.push(load(world, &node, "by_runai.py", &node.native()?)?),
            }
        }
    }
    let mut table = Table::new(&["what", "all tensors after s", "GB/s", "speed / limit", "CPU s/GiB"]);
    let mut add = |what: &str, sample: &Sample| {
        table.push(vec![
            what.to_owned(),
            format!("{:.2}", sample.wall()),
            format!("{:.2}", world.gigabytes() / sample.wall()),
            format!("{:.2}", sample.speed_relative_to(&limit)),
            format!("{:.2}", sample.cpu() / world.gibibytes()),
        ]);
    };
    add("limit: the same files read past the page cache, nothing kept", &limit);
    add("weightd", &own.all);
    if world.with_peers {
        add("runai-model-streamer", &peer.all);
    }
    Ok(format!(
        "## From a cold disk to memory\n\nNothing of the files is in the page cache. The limit reads 64 parts of 2 MiB at a time, \
         which of what was tried gives most.\n\n{}\n",
        table.markdown()
    ))
}

fn read(world: &World, node: &Node) -> Result<Cost> {
    let files = node.native()?;
    let mut command = Command::new(binary("reader")?);
    command.arg("direct").args(world.shards(&files));
    world.cool(&files)?;
    run(&mut command)
}

fn load(world: &World, node: &Node, script: &str, source: &Path) -> Result<(Loaded, Cost)> {
    world.hold(1)?;
    let mut client = world.client(script, text(source)?, "")?;
    world.cool(&node.native()?)?;
    world.give_up()?;
    let run = timed(&mut client, Some(node))?;
    client.check()?;
    Ok(run)
}
