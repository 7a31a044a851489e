//! How fast is a prefetch? Bucket to verified, durable files, beside the floor and beside the tool people use today.
//!
//! Everything runs in turn against one emulated bucket on loopback, five rounds, so that the ratios hold although the
//! machine's disk does not keep its speed. `cargo xtask bench prefetch --report docs/benchmarks/prefetch.md` runs it and rewrites that page.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark reports to its terminal")]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;
use clap::Parser;
use weightd_benches::{
    BUCKET, Bucket, Common, Cost, SOURCE, Sample, Table, binary, gibibytes, gigabytes, machine, run,
};
use weightd_harness::ModelShape;

/// Measures prefetching.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    common: Common,
    /// Leaves out the sizes other than 3.71 GB, TLS and the peer.
    #[arg(long)]
    quick: bool,
}

/// One bucket with one model in it.
struct Bench {
    bucket: Bucket,
    bytes: u64,
    work: PathBuf,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let mut text = format!("{}\n\n", machine());
    let full = Bench::new(&options, &ModelShape::default(), false).await?;
    text += &full.against_the_floor(&options)?;
    text += &full.again(&options)?;
    drop(full);
    if !options.quick {
        let tls = Bench::new(&options, &ModelShape::default(), true).await?;
        text += &tls.against_the_floor(&options)?;
        drop(tls);
        text += &sizes(&options).await?;
    }
    println!("{text}");
    if let Some(path) = &options.common.report {
        std::fs::write(path, report(&text))?;
    }
    Ok(())
}

fn report(text: &str) -> String {
    format!(
        "# Benchmarks\n\nThe last run of `cargo xtask bench prefetch --report docs/benchmarks/prefetch.md`. Medians of the rounds; ratios are medians of run-by-run \
         ratios, because the\ndisk's speed drifts between runs and not within a pair. The bucket is a fake-gcs-server on \
         loopback whose files are\nin the page cache, so client, server and disk share the machine's cores.\n\n{text}"
    )
}

impl Bench {
    async fn new(options: &Options, shape: &ModelShape, tls: bool) -> Result<Self> {
        eprintln!("making the model and its bucket");
        let directory = &options.common.directory;
        let bucket = Bucket::make(directory, shape, tls).await?;
        Ok(Self { bytes: bucket.model.file_bytes()?, bucket, work: directory.join("work") })
    }

    /// A command that talks to this bucket.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env("STORAGE_EMULATOR_HOST", self.bucket.gcs.endpoint());
        if let Some(ca) = self.bucket.gcs.ca_file() {
            command.env("SSL_CERT_FILE", ca);
        }
        command
    }

    fn floor(&self) -> Result<Cost> {
        let out = self.fresh()?;
        run(self.command(binary("floor")?).args(["--bucket", BUCKET, "--prefix", "model", "--out"]).arg(out))
    }

    fn prefetch(&self, store: &Path) -> Result<Cost> {
        run(self.command(binary("weightctl")?).arg("--store").arg(store).args(["prefetch", SOURCE]))
    }

    fn rclone(&self) -> Result<Cost> {
        let out = self.fresh()?;
        let copy = format!(
            "rclone copy :gcs:bench/model {out} --gcs-anonymous --gcs-endpoint {endpoint}/storage/v1/ --transfers 4 \
             --multi-thread-streams 4 --multi-thread-cutoff 64M && sync -f {out}",
            out = out.display(),
            endpoint = self.bucket.gcs.endpoint(),
        );
        run(self.command("sh").args(["-c", &copy]))
    }

    fn gcloud(&self) -> Result<Cost> {
        let out = self.fresh()?;
        let copy =
            format!("gcloud storage cp -r gs://bench/model {out} && sync -f {out}", out = out.display());
        let mut command = self.command("sh");
        command.env("CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE", format!("{}/", self.bucket.gcs.endpoint()));
        command.env("CLOUDSDK_AUTH_DISABLE_CREDENTIALS", "true");
        run(command.args(["-c", &copy]))
    }

    /// An empty directory; what the last run left is gone and its blocks are free.
    fn fresh(&self) -> Result<PathBuf> {
        if self.work.exists() {
            std::fs::remove_dir_all(&self.work)?;
        }
        std::fs::create_dir_all(&self.work)?;
        // Freed blocks are discarded in the background; without this the next run would pay for the last one.
        run(Command::new("sync").arg("-f").arg(&self.work))?;
        Ok(self.work.clone())
    }

    fn against_the_floor(&self, options: &Options) -> Result<String> {
        let (mut floor, mut prefetch, mut peer) = (Sample::default(), Sample::default(), Sample::default());
        let gcloud = is_there("gcloud");
        let has_peer = gcloud || is_there("rclone");
        let with_peer = has_peer && self.bucket.gcs.ca_file().is_none() && !options.quick;
        for round in 1..=options.common.rounds {
            eprintln!("round {round} of {}", options.common.rounds);
            floor.costs.push(self.floor()?);
            let store = self.fresh()?;
            prefetch.costs.push(self.prefetch(&store)?);
            if with_peer {
                peer.costs.push(if gcloud { self.gcloud()? } else { self.rclone()? });
            }
        }
        let scheme = if self.bucket.gcs.ca_file().is_some() { "TLS" } else { "plain HTTP" };
        let mut table = Table::new(&["what", "wall s", "GB/s", "speed / floor", "CPU s/GiB", "peak MiB"]);
        let mut add = |name: &str, sample: &Sample| {
            table.push(vec![
                name.to_owned(),
                format!("{:.2}", sample.wall()),
                format!("{:.2}", gigabytes(self.bytes) / sample.wall()),
                format!("{:.2}", sample.speed_relative_to(&floor)),
                format!("{:.2}", sample.cpu() / gibibytes(self.bytes)),
                format!("{:.0}", sample.peak_mib()),
            ]);
        };
        add("floor", &floor);
        add("weightctl prefetch", &prefetch);
        let mut text =
            format!("## Bucket to durable files, {:.2} GB over {scheme}\n\n", gigabytes(self.bytes));
        if with_peer {
            let name = if gcloud { "gcloud storage cp -r" } else { "rclone copy" };
            add(name, &peer);
            text += &format!(
                "weightctl is {:.1} times as fast as `{name}`.\n\n",
                prefetch.speed_relative_to(&peer)
            );
        }
        Ok(format!("{text}{}\n", table.markdown()))
    }

    /// A prefetch of what is there already.
    fn again(&self, options: &Options) -> Result<String> {
        let store = self.fresh()?;
        self.prefetch(&store)?;
        let mut sample = Sample::default();
        for _ in 0..options.common.rounds {
            sample.costs.push(self.prefetch(&store)?);
        }
        let millis = sample.wall() * 1000.0;
        Ok(format!(
            "## A second prefetch of a complete snapshot\n\n{millis:.0} ms, process start included.\n\n"
        ))
    }
}

/// Do cost per byte and memory stay flat?
async fn sizes(options: &Options) -> Result<String> {
    let mut table = Table::new(&["model", "GB/s", "CPU s/GiB", "peak MiB"]);
    for bytes in [500_000_000, 2_000_000_000, 8_000_000_000] {
        let bench = Bench::new(options, &ModelShape::of_bytes(bytes), false).await?;
        let mut sample = Sample::default();
        for _ in 0..options.common.rounds {
            let store = bench.fresh()?;
            sample.costs.push(bench.prefetch(&store)?);
        }
        table.push(vec![
            format!("{:.2} GB", gigabytes(bench.bytes)),
            format!("{:.2}", gigabytes(bench.bytes) / sample.wall()),
            format!("{:.2}", sample.cpu() / gibibytes(bench.bytes)),
            format!("{:.0}", sample.peak_mib()),
        ]);
    }
    Ok(format!("## From small to large\n\n{}\n", table.markdown()))
}

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}
