//! How much memory several processes have together that use one model.

use anyhow::Result;
use weightd_benches::{Client, Memory, Node, Table, gigabytes, median, memory_of};

use crate::world::{World, text};

/// Most rounds: memory does not drift as speeds do, and programs take long to start.
const ROUNDS: usize = 3;
/// Processes that borrow tensors.
const BORROWERS: usize = 4;
/// Processes with a model of transformers.
const MODELS: usize = 2;

/// What agent, keeper and programs have together.
#[derive(Debug, Clone, Copy)]
struct Together {
    proportional: u64,
    /// Of the programs alone.
    anonymous: u64,
}

/// Every tensor of a resident model, held and read by several processes.
pub(crate) fn tensors(world: &World) -> Result<String> {
    let node = world.node("share", "")?;
    let volume = node.mount("model", &["--mode", "bind"])?;
    let what = format!("{BORROWERS} processes with every tensor, from shared memory");
    let grown = rounds(world, &node, &what, BORROWERS, || world.client("by_weightd.py", text(&volume)?, ""))?;
    section(world, "Memory of processes that share a model", &what, &grown)
}

/// Models of transformers, over the files of a volume: what they share is the page cache.
pub(crate) fn transformers(world: &World) -> Result<String> {
    let node = world.node("transformers", "")?;
    let volume = node.mount("model", &["--mode", "bind", "--warm-up"])?;
    let what = format!("{MODELS} models of transformers, `from_pretrained` of the volume");
    let grown =
        rounds(world, &node, &what, MODELS, || world.client("by_transformers.py", text(&volume)?, ""))?;
    section(world, "Memory of models of transformers", &what, &grown)
}

/// What all of them have more than before any of them loaded the model.
fn rounds(
    world: &World,
    node: &Node,
    what: &str,
    count: usize,
    start: impl Fn() -> Result<Client>,
) -> Result<Vec<Together>> {
    let mut all = Vec::new();
    for round in 1..=world.rounds.min(ROUNDS) {
        eprintln!("{what}, round {round}");
        let mut clients = (0..count).map(|_| start()).collect::<Result<Vec<_>>>()?;
        let before = together(node, &clients)?;
        clients.iter_mut().try_for_each(|client| client.load().map(drop))?;
        clients.iter_mut().try_for_each(Client::read)?;
        let after = together(node, &clients)?;
        clients.iter_mut().try_for_each(Client::check)?;
        all.push(Together {
            proportional: after.proportional.saturating_sub(before.proportional),
            anonymous: after.anonymous.saturating_sub(before.anonymous),
        });
    }
    Ok(all)
}

fn together(node: &Node, clients: &[Client]) -> Result<Together> {
    let own = clients.iter().map(|client| memory_of(client.pid())).collect::<Result<Vec<Memory>>>()?;
    let ours = node.processes().map(memory_of).into_iter().collect::<Result<Vec<_>>>()?;
    let proportional = own.iter().chain(&ours).map(|memory| memory.proportional).sum();
    Ok(Together { proportional, anonymous: own.iter().map(|memory| memory.anonymous).sum() })
}

fn section(world: &World, title: &str, what: &str, all: &[Together]) -> Result<String> {
    let mut table = Table::new(&["what", "memory GB", "memory / model", "limit", "of it private GB"]);
    let middle = |of: fn(&Together) -> u64| median(all.iter().map(|grown| gigabytes(of(grown))));
    let proportional = middle(|grown| grown.proportional);
    table.push(vec![
        what.to_owned(),
        format!("{proportional:.2}"),
        format!("{:.3}", proportional / world.gigabytes()),
        "1.05".to_owned(),
        format!("{:.3}", middle(|grown| grown.anonymous)),
    ]);
    Ok(format!(
        "## {title}\n\nProportional memory (PSS) of agent, keeper and all processes, when these have read every page: what it \
         grew by since\nthey had imported everything and loaded nothing.\n\n{}\n",
        table.markdown()
    ))
}
