//! How long it takes to have every tensor of a model that is in memory already, and what that costs.

use std::fs;

use anyhow::{Result, ensure};
use tempfile::TempDir;
use weightd_benches::{BUCKET, Client, Loaded, Memory, Node, Table, mebibytes, median, memory_of};
use weightd_harness::{Dtype, Tensor, write_safetensors};

use crate::world::{World, text};

/// What a large mixture of experts has, about.
const MANY: usize = 90_000;
/// Files that they are in.
const FILES: usize = 8;
/// Elements of each: nothing here depends on it.
const ELEMENTS: u64 = 128;
/// The model of many tensors, as users name it.
const MANY_SOURCE: &str = "gs://bench/many";

/// One attachment, and what the process had before it, after it, and when it had read every page.
struct Attached {
    loaded: Loaded,
    memory: [Memory; 3],
}

/// The model that all is measured on.
pub(crate) fn resident(world: &World) -> Result<String> {
    let node = world.node_with("attach", "")?;
    let volume = node.mount("model", &["--mode", "bind"])?;
    let start = || world.client("by_weightd.py", text(&volume)?, "");
    let attached = rounds(world, "attaching to a resident model", start)?;
    section(
        "Attaching to a resident model",
        "a volume's path, every tensor held as a torch tensor",
        "50 ms",
        &attached,
    )
}

/// One with very many tensors.
pub(crate) fn many(world: &World) -> Result<String> {
    let published = publish(world)?;
    world.bucket.gcs.place_directory(BUCKET, "many", published.path())?;
    let node: Node = world.node_with("many", "")?;
    let volume = node.mount_source(MANY_SOURCE, "many", &["--mode", "bind"])?;
    let arguments = [text(&volume)?, text(published.path())?];
    let start = || Client::start(&world.python, "by_weightd.py", &arguments, &[]);
    let attached = rounds(world, "attaching to very many tensors", start)?;
    section("Very many tensors", "the same of a model with so many tensors", "1000 ms", &attached)
}

/// Writes the model of many tensors.
fn publish(world: &World) -> Result<TempDir> {
    let published = tempfile::tempdir_in(&world.work)?;
    for file in 0..FILES {
        let tensors: Vec<Tensor> = (file..MANY)
            .step_by(FILES)
            .map(|number| {
                let (layer, expert) = (number / 1024, number % 1024);
                Tensor::new(
                    format!("model.layers.{layer}.mlp.experts.{expert}.weight"),
                    Dtype::Bf16,
                    [ELEMENTS],
                )
            })
            .collect();
        let name = format!("model-{:05}-of-{FILES:05}.safetensors", file + 1);
        write_safetensors(&published.path().join(name), &tensors, 7)?;
    }
    fs::write(published.path().join("config.json"), "{}")?;
    Ok(published)
}

fn rounds(world: &World, what: &str, start: impl Fn() -> Result<Client>) -> Result<Vec<Attached>> {
    // Makes it resident.
    let mut holder = start()?;
    holder.load()?;
    let mut all = Vec::new();
    for round in 1..=world.rounds {
        eprintln!("{what}, round {round}");
        let mut client = start()?;
        let before = memory_of(client.pid())?;
        let loaded = client.load()?;
        let attached = memory_of(client.pid())?;
        client.read()?;
        let memory = [before, attached, memory_of(client.pid())?];
        client.check()?;
        all.push(Attached { loaded, memory });
    }
    ensure!(holder.load()?.tensors > 0, "what was held is gone");
    Ok(all)
}

fn section(title: &str, what: &str, limit: &str, all: &[Attached]) -> Result<String> {
    let mut table = Table::new(&[
        "what",
        "tensors",
        "all held after ms",
        "slowest ms",
        "limit",
        "CPU ms",
        "private memory grew by MiB",
        "after reading every page MiB",
    ]);
    let millis = || all.iter().map(|attached| attached.loaded.seconds * 1e3);
    let grown = |at: usize| {
        let grown = |attached: &Attached| {
            mebibytes(attached.memory[at].anonymous) - mebibytes(attached.memory[0].anonymous)
        };
        format!("{:.1}", median(all.iter().map(grown)))
    };
    table.push(vec![
        what.to_owned(),
        all.first().map_or(0, |attached| attached.loaded.tensors).to_string(),
        format!("{:.1}", median(millis())),
        format!("{:.1}", millis().fold(0.0, f64::max)),
        limit.to_owned(),
        format!("{:.1}", median(all.iter().map(|attached| attached.loaded.cpu * 1e3))),
        grown(1),
        grown(2),
    ]);
    Ok(format!("## {title}\n\n{}\n", table.markdown()))
}
