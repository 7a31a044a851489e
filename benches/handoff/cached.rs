//! Files in the page cache, and how long it takes to have every tensor in memory that stays.

use anyhow::Result;
use weightd_benches::{Node, Pages, Table};

use crate::world::{Runs, World, order, text, timed};

/// The pages of the memory that tensors come into, which was never touched before: what they are called, and who gets huge ones.
const PAGES: [(&str, &str); 2] = [("huge pages", "advise"), ("pages of 4 KiB", "never")];

/// Programs that load tensors, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loader {
    Weightd,
    Runai,
    Copied,
    Mapped,
}

impl Loader {
    const ALL: [Self; 4] = [Self::Weightd, Self::Runai, Self::Copied, Self::Mapped];

    fn words(self, memory: &str) -> String {
        match self {
            Self::Weightd => format!("weightd, {memory}"),
            Self::Runai => "runai-model-streamer".to_owned(),
            Self::Copied => "safetensors `load_file`, each tensor copied".to_owned(),
            Self::Mapped => "safetensors `load_file`, each page touched in the page cache".to_owned(),
        }
    }

    fn script(self) -> (&'static str, &'static str) {
        match self {
            Self::Weightd => ("by_weightd.py", ""),
            Self::Runai => ("by_runai.py", ""),
            Self::Copied => ("by_safetensors.py", "copied"),
            Self::Mapped => ("by_safetensors.py", ""),
        }
    }
}

pub(crate) fn measure(world: &World) -> Result<String> {
    let mut table =
        Table::new(&["what", "all tensors after s", "GB/s", "weightd's speed / its", "CPU s/GiB"]);
    for (memory, who) in PAGES {
        let _pages = Pages::set(who)?;
        let node = world.node("cached", "")?;
        node.mount("model", &["--mode", "bind", "--warm-up"])?;
        let loaders: Vec<Loader> =
            Loader::ALL.into_iter().filter(|loader| world.with_peers || *loader != Loader::Runai).collect();
        let mut runs = vec![Runs::default(); loaders.len()];
        for round in 0..world.rounds {
            eprintln!("from the page cache, {memory}, round {}", round + 1);
            for at in order(loaders.len(), round) {
                runs[at].push(one(world, &node, loaders[at])?);
            }
        }
        for (loader, run) in loaders.iter().zip(&runs) {
            table.push(vec![
                loader.words(memory),
                format!("{:.2}", run.all.wall()),
                format!("{:.2}", world.gigabytes() / run.all.wall()),
                format!("{:.2}", runs[0].all.speed_relative_to(&run.all)),
                format!("{:.2}", run.all.cpu() / world.gibibytes()),
            ]);
        }
    }
    Ok(format!(
        "## From the page cache to memory that stays\n\nFiles of a complete volume that was warmed up; they are those that peers \
         read. What is only mapped is the page cache's:\nit goes when memory is wanted for something else.\n\n{}\n",
        table.markdown()
    ))
}

fn one(
    world: &World,
    node: &Node,
    loader: Loader,
) -> Result<(weightd_benches::Loaded, weightd_benches::Cost)> {
    node.until_forgotten()?;
    world.hold(1)?;
    let files = node.native()?;
    let volume = node.target("model");
    let (script, how) = loader.script();
    let is_own = loader == Loader::Weightd;
    let mut client = world.client(script, text(if is_own { &volume } else { &files })?, how)?;
    world.warm(&files)?;
    world.give_up()?;
    let run = timed(&mut client, is_own.then_some(node))?;
    client.check()?;
    Ok(run)
}
