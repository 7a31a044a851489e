//! A model that goes through a ring, beside the same in memory that stays: what a process has that keeps nothing.

use anyhow::Result;
use weightd_benches::{Cost, Loaded, Node, SOURCE, Sample, Table, median, memory_of};

use crate::world::{World, order, text, timed};

/// The ring. None stands for memory that stays.
const RINGS: [(&str, &str); 2] = [("memory that stays", ""), ("a ring of 256 MiB", "256MiB")];

/// What each came to, in the order of [`RINGS`].
#[derive(Debug, Clone, Default)]
struct Way {
    all: Sample,
    /// Shared memory of agent and keeper after it, in GB.
    memory: Vec<f64>,
}

/// From the disk of a node that has the model, and from the bucket of one that has not.
pub(crate) fn measure(world: &World) -> Result<String> {
    let mut table = Table::new(&[
        "from",
        "through",
        "all tensors read after s",
        "speed / memory that stays",
        "agent and keeper GB",
    ]);
    for (from, is_here) in [("a cold disk", true), ("the bucket", false)] {
        let here = is_here.then(|| world.node("stream", "")).transpose()?;
        if let Some(node) = &here {
            node.prefetch(SOURCE)?;
        }
        let mut ways = [Way::default(), Way::default()];
        for round in 0..world.rounds {
            eprintln!("through a ring from {from}, round {}", round + 1);
            for at in order(RINGS.len(), round) {
                let fresh = here.is_none().then(|| world.node("stream", "")).transpose()?;
                let Some(node) = here.as_ref().or(fresh.as_ref()) else { continue };
                node.until_forgotten()?;
                let ((_, cost), memory) = one(world, node, RINGS[at].1, is_here)?;
                ways[at].all.costs.push(cost);
                ways[at].memory.push(memory);
            }
        }
        for (way, (through, _)) in ways.iter().zip(RINGS) {
            table.push(vec![
                from.to_owned(),
                through.to_owned(),
                format!("{:.2}", way.all.wall()),
                format!("{:.2}", way.all.speed_relative_to(&ways[0].all)),
                format!("{:.2}", median(way.memory.iter().copied())),
            ]);
        }
    }
    Ok(format!(
        "## Through a ring\n\nEvery tensor in order, each page read, none kept. The limit is a tenth less speed than memory that \
         stays.\n\n{}\n",
        table.markdown()
    ))
}

fn one(world: &World, node: &Node, ring: &str, is_here: bool) -> Result<((Loaded, Cost), f64)> {
    world.hold(1)?;
    let socket = node.handoff_socket()?;
    let mut client =
        world.client_with("by_stream.py", SOURCE, ring, &[("WEIGHTD_HANDOFF_SOCKET", text(&socket)?)])?;
    if is_here {
        world.cool(&node.native()?)?;
    } else {
        world.warm(&world.bucket.model.directory)?;
    }
    world.give_up()?;
    let run = timed(&mut client, Some(node))?;
    let memory: u64 = node
        .processes()
        .map(|pid| memory_of(pid).map(|memory| memory.proportional))
        .into_iter()
        .sum::<Result<_>>()?;
    client.check()?;
    Ok((run, weightd_benches::gigabytes(memory)))
}
