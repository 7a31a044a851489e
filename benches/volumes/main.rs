//! Do volumes cost anything? Complete ones beside the files themselves, loading ones beside a plain prefetch and beside
//! Cloud Storage FUSE.
//!
//! Everything that is compared runs in turn, round by round, so that ratios hold although the machine's disk does not keep
//! its speed. `cargo xtask bench volumes --report docs/benchmarks/volumes.md` runs it and rewrites that page. Needs root,
//! to mount and to empty the page cache.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark reports to its terminal")]

mod complete;
mod first_byte;
mod loading;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::Result;
use clap::Parser;
use weightd_benches::{
    Bucket, Common, Cost, Gcsfuse, binary, busy, forget_pages, gibibytes, machine, run, take_memory,
};
use weightd_harness::{ModelShape, python};

/// Measures volumes.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    common: Common,
    /// Leaves out the peer.
    #[arg(long)]
    quick: bool,
    /// Runs these parts only: complete, plain, first-byte, loading.
    #[arg(long, value_delimiter = ',')]
    parts: Vec<String>,
}

/// One bucket with one model in it.
struct Bench {
    bucket: Bucket,
    rounds: usize,
    work: PathBuf,
    with_peer: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    eprintln!("making the model and its bucket");
    let bench = Bench {
        bucket: Bucket::make(&options.common.directory, &ModelShape::default(), false).await?,
        rounds: options.common.rounds,
        work: options.common.directory.join("volumes"),
        with_peer: !options.quick && Gcsfuse::is_here(),
    };
    fs::create_dir_all(&bench.work)?;
    let mut text = format!("{}\n\n", machine());
    let has = |part: &str| options.parts.is_empty() || options.parts.iter().any(|wanted| wanted == part);
    if has("complete") {
        text += &complete::by_the_kernel(&bench)?;
    }
    if has("plain") {
        text += &complete::by_the_agent(&bench)?;
    }
    if has("first-byte") {
        text += &first_byte::measure(&bench).await?;
    }
    if has("loading") {
        text += &loading::measure(&bench)?;
    }
    println!("{text}");
    if let Some(path) = &options.common.report {
        fs::write(path, report(&text))?;
    }
    Ok(())
}

fn report(text: &str) -> String {
    format!(
        "# Volumes\n\nThe last run of `cargo xtask bench volumes --report docs/benchmarks/volumes.md`. Medians of the \
         rounds; ratios are\nmedians of round-by-round ratios, because the disk's speed drifts between rounds. The bucket is \
         a fake-gcs-server on\nloopback whose files are in the page cache, so client, server, reader and disk share the \
         machine's cores.\n\n{text}"
    )
}

impl Bench {
    /// Where a node or a peer may live; nothing is there.
    fn place(&self, name: &str) -> Result<PathBuf> {
        fs::create_dir_all(&self.work)?;
        let place = self.work.join(name);
        if place.exists() {
            fs::remove_dir_all(&place)?;
        }
        Ok(place)
    }

    fn shards(&self, directory: &Path) -> Vec<PathBuf> {
        let shards = self.bucket.model.files.iter().filter(|name| name.ends_with(".safetensors"));
        shards.map(|name| directory.join(name)).collect()
    }

    fn gibibytes(&self) -> f64 {
        gibibytes(self.bucket.model.tensor_bytes)
    }

    /// Reads a directory's weights in one of the reader's ways.
    fn read(&self, how: &str, directory: &Path) -> Result<Cost> {
        whole_machine(|| run(Command::new(binary("reader")?).arg(how).args(self.shards(directory))).map(drop))
    }

    /// Reads one file in one of the reader's ways.
    fn read_file(&self, how: &str, path: &Path) -> Result<Cost> {
        whole_machine(|| run(Command::new(binary("reader")?).arg(how).arg(path)).map(drop))
    }

    /// Copies every tensor of a directory's weights, as loaders do.
    fn clone_tensors(&self, directory: &Path) -> Result<Cost> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/clone_tensors.py");
        whole_machine(|| run(Command::new(python()?).arg(script).arg(directory)).map(drop))
    }

    /// Nothing that is read is in the page cache.
    fn cool(&self) -> Result<()> {
        forget_pages()?;
        take_memory(&self.work)
    }

    /// Nothing is in the page cache but the bucket and the loader's own program, which is no part of the job.
    fn cool_all_but_the_bucket(&self) -> Result<()> {
        forget_pages()?;
        run(Command::new(binary("reader")?)
            .arg("sequential")
            .args(self.shards(&self.bucket.model.directory)))?;
        take_memory(&self.work)?;
        run(Command::new(python()?).args(["-c", "import ml_dtypes, safetensors.numpy"])).map(drop)
    }
}

/// What work cost the machine: the time that all of its processors spent on anything meanwhile.
fn whole_machine(work: impl FnOnce() -> Result<()>) -> Result<Cost> {
    let (started, before) = (Instant::now(), busy()?);
    work()?;
    Ok(Cost { wall: started.elapsed(), cpu: busy()?.saturating_sub(before), peak_bytes: 0 })
}
