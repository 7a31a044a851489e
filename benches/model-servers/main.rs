//! Do model servers give the same tokens from weightd as from plain files?
//!
//! Real servers: `vllm serve`, and transformers, on the CPU. A small model with random weights lies in an emulated bucket; an
//! agent with its keeper shows it as a volume. What counts are greedy tokens, beside those of vLLM's own loader over the
//! files themselves. `cargo xtask vllm --report docs/benchmarks/model-servers.md` runs it and rewrites that page. Needs root,
//! to mount.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it reports to its terminal")]

mod cases;
mod lent;
mod memory;
mod server;
mod world;

use std::{fs, path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Result, bail};
use clap::Parser;
use weightd_benches::{Table, machine};

use world::World;

/// Runs model servers on what weightd shows them.
#[derive(Parser)]
struct Options {
    /// Runs only cases whose name contains this; may be given several times.
    #[arg(long)]
    only: Vec<String>,
    /// Where to write models, stores and logs; needs about 2 GB.
    #[arg(long, default_value = "target/bench/model-servers")]
    directory: PathBuf,
    /// Writes the table into this file as well.
    #[arg(long)]
    report: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    // Servers, agents and mounts end with what holds them, also when it is interrupted.
    tokio::select! {
        done = run(Options::parse()) => done,
        interrupt = tokio::signal::ctrl_c() => {
            interrupt?;
            bail!("interrupted")
        }
    }
}

async fn run(options: Options) -> Result<ExitCode> {
    eprintln!("making two models and their bucket");
    let world = World::make(&options.directory).await?;
    let mut table = Table::new(&["case", "result", "seconds"]);
    let (mut passed, mut failed) = (0, 0);
    for (name, case) in cases::all() {
        if !options.only.is_empty() && !options.only.iter().any(|wanted| name.contains(wanted.as_str())) {
            continue;
        }
        let started = Instant::now();
        let (word, result) = match case(&world).await {
            Ok(result) => ("ok", result),
            Err(error) => ("FAILED", format!("{error:#}")),
        };
        let seconds = started.elapsed().as_secs();
        *(if word == "ok" { &mut passed } else { &mut failed }) += 1;
        println!("{word:6} {name}: {result} ({seconds} s)");
        let shown = if word == "ok" { result } else { format!("**failed**: {result}") };
        table.push(vec![name.to_owned(), shown.replace('|', "/"), seconds.to_string()]);
    }
    let summary = format!("{passed} passed, {failed} failed: {}", world.versions);
    println!("{summary}");
    if let Some(path) = &options.report {
        fs::write(path, report(&summary, &table))?;
    }
    Ok(if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn report(summary: &str, table: &Table) -> String {
    format!(
        "# Model servers\n\nThe last run of `cargo xtask vllm --report docs/benchmarks/model-servers.md`. Each line is a \
         `vllm serve` of its\nown, where it names no other program, with a model of 220 MB in bfloat16 whose weights are \
         random, in three files. Tokens are\ngreedy, 24 for each of three prompts, and must be those of vLLM's own loader \
         over the files themselves, with as many ranks; those of\ntransformers must be its own over the files. Seconds are of \
         the whole case, most of which is vLLM's start. Servers, bucket and agent\nshare the machine.\n\n{}\n\n{summary}\n\n{}",
        machine(),
        table.markdown()
    )
}
