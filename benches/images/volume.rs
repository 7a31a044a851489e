//! A volume that is bound from an image, beside the image's own files.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};
use weightd_benches::{Node, SOURCE, Sample, Table, binary, forget_pages_of, gigabytes, run, take_memory};
use weightd_harness::LoopMount;

use crate::Bench;

/// The disk changes its speed from one second to the next: file by file, and so many rounds of that for each of the others'.
const COLD_RUNS: usize = 2;

pub(crate) fn measure(bench: &Bench) -> Result<String> {
    let work = bench.fresh("volume")?;
    let image = work.join("disk.raw");
    bench.build(SOURCE, &image)?;
    let disk = LoopMount::read_only(&image, &work.join("disks/disk"))?;
    let more = format!("[tiers]\ndirectories = [{:?}]", work.join("disks/*"));
    let node = Node::start(&work.join("node"), &bench.bucket.gcs.endpoint(), &more)?;
    let volume = node.mount("volume", &[])?;
    ensure!(node.serving("volume")? == "bind");
    let native = node.native()?;
    ensure!(native.starts_with(disk.path()), "{} is not on the disk", native.display());
    take_memory(&work)?;
    let mut table = Table::new(&["what", "page cache", "image's own file GB/s", "volume / own file"]);
    for (how, name) in [("sequential", "read in order"), ("touch", "map and touch every page")] {
        for is_warm in [true, false] {
            eprintln!("volume, {name}, {}", if is_warm { "warm" } else { "cold" });
            let (own, through) = in_turn(bench, how, is_warm, &native, &volume)?;
            let bytes = bench.bucket.model.tensor_bytes / shards(bench, &native).len() as u64;
            table.push(vec![
                name.to_owned(),
                if is_warm { "warm" } else { "cold" }.to_owned(),
                format!("{:.2}", gigabytes(bytes) / own.wall()),
                format!("{:.2}", through.speed_relative_to(&own)),
            ]);
        }
    }
    drop(node);
    Ok(format!("## A volume from a mounted image\n\n{}\n", table.markdown()))
}

fn shards(bench: &Bench, directory: &Path) -> Vec<PathBuf> {
    let files = bench.bucket.model.files.iter().filter(|name| name.ends_with(".safetensors"));
    files.map(|name| directory.join(name)).collect()
}

fn in_turn(
    bench: &Bench,
    how: &str,
    is_warm: bool,
    native: &Path,
    volume: &Path,
) -> Result<(Sample, Sample)> {
    let mut samples = [const { Sample { costs: Vec::new() } }; 2];
    let read = |path: &Path| run(Command::new(binary("reader")?).arg(how).arg(path));
    let names = shards(bench, Path::new(""));
    for name in names.iter().filter(|_| is_warm) {
        read(&native.join(name))?;
    }
    for (round, name) in
        (0..bench.rounds * COLD_RUNS).flat_map(|round| names.iter().map(move |name| (round, name)))
    {
        // Whoever goes first has the quieter disk.
        for at in (0..2).map(|at| (at + round) % 2) {
            if !is_warm {
                forget_pages_of(&native.join(name))?;
            }
            samples[at].costs.push(read(&[native, volume][at].join(name))?);
        }
    }
    let [own, through] = samples;
    Ok((own, through))
}
