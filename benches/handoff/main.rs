//! What does it cost to give tensors to model servers, through memory that they share?
//!
//! Each job is measured beside its limit, or beside the programs that people load tensors with today, in the same run and in
//! turn, so that ratios hold although neither the machine's disk nor its memory keeps its speed. What a program got is
//! compared, byte by byte, with the model as it was published. `cargo xtask bench handoff --report docs/benchmarks/handoff.md`
//! runs it and rewrites that page. Needs root, to mount and to empty the page cache.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark reports to its terminal")]

mod attach;
mod cached;
mod cold;
mod device;
mod origin;
mod share;
mod stream;
mod world;

use std::fs;

use anyhow::{Result, bail};
use clap::Parser;
use weightd_benches::{Bucket, Common, Pages, Python, machine};
use weightd_harness::{ModelShape, mounts};

use world::World;

/// Measures hand-off.
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
    /// Runs these parts only: attach, many, share, transformers, cached, cold, origin, four, stream, device.
    #[arg(long, value_delimiter = ',')]
    parts: Vec<String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    // Agents, programs and mounts end with what holds them, also when it is interrupted.
    tokio::select! {
        done = measure(Options::parse()) => done,
        interrupt = tokio::signal::ctrl_c() => {
            interrupt?;
            bail!("interrupted")
        }
    }
}

async fn measure(options: Options) -> Result<()> {
    let work = options.common.directory.join("handoff");
    fs::create_dir_all(&work)?;
    let work = work.canonicalize()?;
    mounts::remove_below(&work);
    let python = Python::find(&work)?;
    if !python.has_peers && !options.quick {
        eprintln!("warning: runai-model-streamer is not in .tools/peers: NOTHING IS MEASURED BESIDE IT");
    }
    let pages = Pages::set("advise");
    if let Err(error) = &pages {
        eprintln!(
            "warning: no huge pages for shared memory ({error}): WHAT BRINGS MODELS INTO MEMORY IS SLOW"
        );
    }
    eprintln!("making the model and its bucket");
    let shape = options.size.map_or_else(ModelShape::default, ModelShape::of_bytes);
    let world = World {
        bucket: Bucket::make(&options.common.directory, &shape, false).await?,
        with_peers: !options.quick && python.has_peers,
        python,
        rounds: options.common.rounds,
        work,
    };
    let has = |part: &str| options.parts.is_empty() || options.parts.iter().any(|wanted| wanted == part);
    let mut text = format!(
        "{}; {}\n\nThe model has {:.2} GB in bfloat16.\n\n",
        machine(),
        world.python.versions()?,
        world.gigabytes()
    );
    // Each is shown as soon as it is known: all of them take a while.
    let mut show = |section: String| {
        println!("{section}");
        text += &section;
    };
    if has("attach") {
        show(attach::resident(&world)?);
    }
    if has("many") {
        show(attach::many(&world)?);
    }
    if has("share") {
        show(share::tensors(&world)?);
    }
    if has("transformers") {
        show(share::transformers(&world)?);
    }
    if has("cached") {
        show(cached::measure(&world)?);
    }
    if has("cold") {
        show(cold::measure(&world)?);
    }
    if has("origin") {
        show(origin::one(&world)?);
    }
    if has("four") {
        show(origin::four(&world)?);
    }
    if has("stream") {
        show(stream::measure(&world)?);
    }
    if has("device") {
        show(device::measure(&world)?);
    }
    if let Some(path) = &options.common.report {
        fs::write(path, report(&text))?;
    }
    Ok(())
}

fn report(text: &str) -> String {
    format!(
        "# Hand-off\n\nThe last run of `cargo xtask bench handoff --report docs/benchmarks/handoff.md`. Medians of the rounds; \
         ratios are\nmedians of round-by-round ratios, because neither the disk nor memory keeps its speed. Times begin when a \
         program has\nimported everything, and every byte of every run is compared with the model as it was published. The \
         bucket is a\nfake-gcs-server on loopback whose files are in the page cache, so client, server, agent and disk share the \
         machine's cores.\nCPU is that of the program, and of agent and keeper where they work for it. Memory is new to whoever \
         takes it, and the\nmachine has it: having it from a hypervisor is in no figure.\n\n{text}"
    )
}
