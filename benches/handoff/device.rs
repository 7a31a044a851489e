//! A resident model on its way to a CUDA device, beside memory that the driver itself made.

use anyhow::Result;
use weightd_benches::{Loaded, Node, Table, median};

use crate::world::{Runs, World, order, text, timed};

/// What is measured, in words, and as the program is told. The first is the limit.
const WAYS: [(&str, &str); 5] = [
    ("limit: memory of `cudaMallocHost`, all of it in one copy", "pinned"),
    ("weightd, registering included", "registered"),
    ("weightd, once everything is registered", "again"),
    ("weightd, through staging buffers", "staging"),
    ("safetensors `load_file(device=\"cuda:0\")`, from the page cache", "safetensors"),
];
/// What weightd's speed is to be of the limit's, registering included.
const LIMIT: &str = "0.95";

/// Without a device nothing is measured, and that is said where the figures would be.
pub(crate) fn measure(world: &World) -> Result<String> {
    let title = "## To a CUDA device";
    let device = match world.python.cuda_device() {
        Ok(name) => name,
        Err(why) => {
            let why = why.to_string();
            let why = why.lines().last().unwrap_or("no reason was given");
            eprintln!("warning: no CUDA device can be used ({why}): NOTHING IS MEASURED ON A DEVICE");
            return Ok(format!("{title}\n\nNOT MEASURED: no CUDA device could be used here ({why}).\n\n"));
        }
    };
    let node = world.node_with("device", "")?;
    let volume = node.mount("model", &["--mode", "bind"])?;
    let mut runs = vec![Runs::default(); WAYS.len()];
    let mut registering = vec![Vec::new(); WAYS.len()];
    // Holds the lease, so that all runs find the model in memory.
    let mut holder = world.client("by_weightd.py", text(&volume)?, "")?;
    holder.load()?;
    for round in 0..world.rounds {
        eprintln!("to a CUDA device, round {}", round + 1);
        for at in order(WAYS.len(), round) {
            let (loaded, cost) = one(world, &node, WAYS[at].1)?;
            registering[at].extend(loaded.registering);
            runs[at].push((loaded, cost));
        }
    }
    let mut table =
        Table::new(&["what", "all on the device after s", "GB/s", "speed / limit", "of it registering s"]);
    for (at, (what, _)) in WAYS.iter().enumerate() {
        let spent = &registering[at];
        table.push(vec![
            (*what).to_owned(),
            format!("{:.3}", runs[at].all.wall()),
            format!("{:.2}", world.gigabytes() / runs[at].all.wall()),
            format!("{:.2}", runs[at].all.speed_relative_to(&runs[0].all)),
            if spent.is_empty() { "-".to_owned() } else { format!("{:.3}", median(spent.iter().copied())) },
        ]);
    }
    Ok(format!(
        "{title}\n\n{device}. The model is resident. Of weightd at least {LIMIT} of the limit's speed is wanted, registering \
         included; memory of\nthe device is allocated within its time, and before that of the limit.\n\n{}\n",
        table.markdown()
    ))
}

fn one(world: &World, node: &Node, way: &str) -> Result<(Loaded, weightd_benches::Cost)> {
    let (files, volume) = (node.native()?, node.target("model"));
    let mut client =
        world.client("by_device.py", text(if way == "safetensors" { &files } else { &volume })?, way)?;
    if way == "safetensors" {
        world.warm(&files)?;
    }
    let run = timed(&mut client, Some(node))?;
    client.check()?;
    Ok(run)
}
