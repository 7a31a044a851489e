//! How soon does a pod get its volume, and run?
//!
//! First the driver, the agent and the keeper of a node, called as kubelet calls. Models of the benchmarks' size that the
//! node has never heard of, one after the other: how long until their files are there. Then one that is here, for many
//! pods at once. Last, pods of a real Kubernetes: from the moment at which they are asked for to the first line of their
//! program, and to bytes of a model. `cargo xtask bench csi --report docs/benchmarks/csi.md` runs it and rewrites that
//! page. Needs root, and what the tests' cluster needs.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark reports to its terminal")]

mod calls;
mod pods;

use std::fs;

use anyhow::Result;
use clap::Parser;
use weightd_benches::{Bucket, Common, Table, machine, median, percentile};
use weightd_harness::ModelShape;

/// Measures the driver.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    common: Common,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse().common;
    eprintln!("making the model and its bucket");
    let bucket = Bucket::make(&options.directory, &ModelShape::default(), false).await?;
    let calls = calls::measure(&options.directory, &bucket, options.rounds).await?;
    let pods = pods::measure(&bucket, options.rounds).await?;
    let text = format!("{}\n\n{}\n{}", machine(), of_calls(&calls), of_pods(&pods));
    println!("{text}");
    if let Some(path) = &options.report {
        fs::write(path, format!("{HEAD}{text}"))?;
    }
    Ok(())
}

const HEAD: &str = "# Volumes of pods\n\nThe last run of `cargo xtask bench csi --report docs/benchmarks/csi.md`. The model is of 3.7 \
                    GB; its bucket is a\nfake-gcs-server on loopback.\n\n";

fn of_calls(times: &calls::Times) -> String {
    let seconds = |value: f64| format!("{value:.3}");
    let mut table = Table::new(&["what", "median s", "99th percentile s", "slowest s"]);
    let mut row = |what: &str, times: &[f64]| {
        let all = || times.iter().copied();
        table.push(vec![
            what.to_owned(),
            seconds(median(all())),
            seconds(percentile(all(), 0.99)),
            seconds(percentile(all(), 1.0)),
        ]);
    };
    row("a model that the node has never heard of", &times.unknown);
    row(&format!("{} pods at once, of a complete model", calls::PODS), &times.at_once);
    format!("## Calls\n\nTo the driver's socket, as kubelet makes them.\n\n{}", table.markdown())
}

fn of_pods(rounds: &[pods::Round]) -> String {
    let mut table =
        Table::new(&["what", "runs after s", "first byte after s", "middle of the last shard after s"]);
    for kind in pods::Kind::ALL {
        let middle = |time: fn(&pods::Times) -> Option<f64>| {
            let times: Option<Vec<f64>> = rounds.iter().map(|round| time(&round[&kind])).collect();
            times.map_or("-".to_owned(), |times| format!("{:.2}", median(times)))
        };
        let runs = middle(|times| Some(times.runs));
        table.push(vec![
            kind.words().to_owned(),
            runs,
            middle(|times| times.first),
            middle(|times| times.last),
        ]);
    }
    format!(
        "## Pods\n\nOn a real Kubernetes of one node, on the same machine. From the call that asks for a pod, medians. The \
         bucket is behind a server that checks the pod's\ntoken, and another that exchanges it.\n\n{}",
        table.markdown()
    )
}
