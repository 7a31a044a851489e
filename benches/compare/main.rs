//! weightd beside what one would take instead: the same work, in the same run, on the same machine.
//!
//! Each job is done by everyone in turn and beside its limit, and what came of it is compared with the model as it was published.
//! `cargo xtask bench compare --report docs/benchmarks/compare.md` installs the peers, runs it, and rewrites that page, the numbers
//! beside it (`compare.json`), and the pictures. Needs root, to mount and to empty the page cache.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark reports to its terminal")]

mod contest;
mod jobs;
mod peers;
mod plot;
mod world;

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use clap::{CommandFactory, FromArgMatches, Parser};
use weightd_benches::{Common, Pages, machine};
use weightd_harness::{ModelShape, mounts};

use contest::{Outcome, Terms};
use world::World;

/// Runs of each job, unless it is told.
const ROUNDS: &str = "3";

/// Measures weightd beside its peers.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    common: Common,
    /// About how many bytes of tensors the model has; at least 520 MB. Default: the 3.71 GB model of all benchmarks.
    #[arg(long)]
    size: Option<u64>,
    /// Leaves out the peers.
    #[arg(long)]
    quick: bool,
    /// Has these take part only, by what their names begin with: weightd,runai.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Does these jobs only.
    #[arg(long, value_delimiter = ',', value_parser = jobs::ALL.map(|(name, _)| name))]
    jobs: Vec<String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    // Buckets, agents, programs and mounts end with what holds them, also when it is interrupted: nobody begins after that.
    tokio::spawn(contest::stop_when_interrupted());
    measure(&options())
}

/// What it is told to do.
fn options() -> Options {
    // With as many as elsewhere all jobs take an hour.
    let command = Options::command().mut_arg("rounds", |rounds| rounds.default_value(ROUNDS));
    Options::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit())
}

fn measure(options: &Options) -> Result<()> {
    let is_whole = !options.quick && options.only.is_empty() && options.jobs.is_empty();
    ensure!(
        is_whole || options.common.report.is_none(),
        "the page is of everyone and all jobs: leave out --report, or --quick, --only and --jobs"
    );
    let work = options.common.directory.join("compare");
    fs::create_dir_all(&work)?;
    let work = work.canonicalize()?;
    mounts::remove_below(&work);
    eprintln!("making the model");
    let shape = options.size.map_or_else(ModelShape::default, ModelShape::of_bytes);
    let terms = Terms { rounds: options.common.rounds, only: options.only.clone() };
    let world = World::make(&work, &shape, terms, !options.quick)?;
    // What an agent that is told so does on its node (`handoff.huge_pages`).
    let _pages = Pages::set("advise").context("huge pages for shared memory, which takes root")?;
    let mut outcomes = Vec::new();
    for (name, job) in jobs::ALL {
        if options.jobs.is_empty() || options.jobs.iter().any(|wanted| wanted == name) {
            outcomes.extend(job(&world)?);
        }
    }
    match &options.common.report {
        Some(path) => write(path, &world, &outcomes),
        None => Ok(()),
    }
}

/// The page, its numbers and its pictures.
fn write(path: &Path, world: &World, outcomes: &[Outcome]) -> Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let stem = path.file_stem().context("the report is a file")?.to_string_lossy();
    let mut text = format!(
        "# Beside the peers\n\nThe last run of `cargo xtask bench compare --report docs/benchmarks/compare.md`. Everyone does the same \
         work in turn, and what came of it is\ncompared with the model as it was published, but for that of limits and of how weightd \
         grows. Figures are medians of as many rounds as the \
         tables say, ratios medians of round-by-round\nratios. A peer that takes more than twice weightd's time is not asked again. Bucket, client and disk share \
         the machine's cores. Memory and CPU are those of\neverything that works for a contender, without the bucket; memory that its \
         processes share counts once,\nand of a command that starts others the largest counts. weightd's is in huge pages\n(`handoff.huge_pages`).\n\n{}; {}\n\nThe model has {:.2} GB. The bucket \
         holds it in memory; *shaped* is one that answers as a real one does: 50 ms to the first\nbyte, 150 MB/s a connection, 10 Gbit/s \
         a node, TLS. A *limit* is what the machine does in the same run when nothing but the\nbytes is asked for: Google's own client, \
         eight requests of 64 MiB (16 to the shaped bucket), or a program that reads files.\n\n",
        machine(),
        world.versions()?,
        world.gigabytes()
    );
    for (number, outcome) in outcomes.iter().enumerate() {
        let picture = format!("{stem}-{:02}.svg", number + 1);
        plot::bars(&path.with_file_name(&picture), outcome)?;
        text += &format!("{}![{}]({picture})\n\n", outcome.markdown(), outcome.title);
    }
    fs::write(path, text)?;
    fs::write(path.with_extension("json"), serde_json::to_vec_pretty(outcomes)?)
        .context("writing the numbers")
}
