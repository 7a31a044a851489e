//! What do images cost to build, and tiers to use?
//!
//! Everything that is compared runs in turn, round by round, so that ratios hold although the machine's disk does not keep its speed.
//! `cargo xtask bench images --report docs/benchmarks/images.md` runs it and rewrites that page. Needs root, to mount images and to
//! empty the page cache.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark reports to its terminal")]

mod adopt;
mod build;
mod volume;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;
use clap::Parser;
use weightd_benches::{Bucket, Common, binary, machine, run};
use weightd_harness::ModelShape;

/// Measures images and tiers.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    common: Common,
    /// Leaves out GNU tar, which takes minutes a round.
    #[arg(long)]
    quick: bool,
    /// Runs these parts only: build, adopt, volume.
    #[arg(long, value_delimiter = ',')]
    parts: Vec<String>,
}

/// One bucket with one model in it.
struct Bench {
    bucket: Bucket,
    bytes: u64,
    rounds: usize,
    work: PathBuf,
    with_tar: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    eprintln!("making the model and its bucket");
    let bucket = Bucket::make(&options.common.directory, &ModelShape::default(), false).await?;
    let bench = Bench {
        bytes: bucket.model.file_bytes()?,
        bucket,
        rounds: options.common.rounds,
        work: options.common.directory.canonicalize()?.join("images"),
        with_tar: !options.quick,
    };
    let mut text = format!("{}\n\n", machine());
    let has = |part: &str| options.parts.is_empty() || options.parts.iter().any(|wanted| wanted == part);
    if has("build") {
        text += &build::measure(&bench)?;
    }
    if has("adopt") {
        text += &adopt::measure(&bench)?;
    }
    if has("volume") {
        text += &volume::measure(&bench)?;
    }
    println!("{text}");
    if let Some(path) = &options.common.report {
        fs::write(path, report(&text))?;
    }
    Ok(())
}

fn report(text: &str) -> String {
    format!(
        "# Images and tiers\n\nThe last run of `cargo xtask bench images --report docs/benchmarks/images.md`. Medians of the rounds; \
         ratios are\nmedians of round-by-round ratios, because the disk's speed drifts between rounds. The bucket is a \
         fake-gcs-server on\nloopback whose files are in the page cache, so client, server and disk share the machine's \
         cores.\n\n{text}"
    )
}

impl Bench {
    /// A command that talks to this bucket.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env("STORAGE_EMULATOR_HOST", self.bucket.gcs.endpoint());
        command
    }

    /// `weightctl`, as it is built beside this program.
    fn weightctl(&self) -> Result<Command> {
        Ok(self.command(binary("weightctl")?))
    }

    /// An empty directory; what the last run left is gone and its blocks are free.
    fn fresh(&self, name: &str) -> Result<PathBuf> {
        let directory = self.work.join(name);
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir_all(&directory)?;
        // Freed blocks are discarded in the background; without this the next run would pay for the last one.
        run(Command::new("sync").arg("-f").arg(&directory))?;
        Ok(directory)
    }

    /// Builds an image, and does not read it back.
    fn build(&self, source: &str, output: &Path) -> Result<weightd_benches::Cost> {
        let mut build = self.weightctl()?;
        build.args(["image", "build", "--no-verify", "--model", source, "--output"]).arg(output);
        run(&mut build)
    }
}
