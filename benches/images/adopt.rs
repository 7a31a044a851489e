//! How soon is an agent ready that finds a disk with many models?

use std::{
    fs,
    os::unix::net::UnixStream,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use weightd_benches::{Process, Table, binary, forget_pages, mebibytes, median, wait_until};
use weightd_harness::LoopMount;

use crate::Bench;

const MODELS: usize = 100;
const FILES: usize = 30;
const FILE_BYTES: usize = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn measure(bench: &Bench) -> Result<String> {
    let work = bench.fresh("adopt")?;
    let image = work.join("disk.raw");
    let mut build = bench.weightctl()?;
    for model in 0..MODELS {
        let directory = work.join(format!("models/{model}"));
        fs::create_dir_all(&directory)?;
        for file in 0..FILES {
            let byte = u8::try_from((model + file) % 256)?;
            fs::write(directory.join(format!("part-{file:02}.bin")), vec![byte; FILE_BYTES])?;
        }
        let source = format!("file://{}", directory.display());
        if model == 0 {
            build.args(["image", "build", "--no-verify", "--output"]).arg(&image);
        }
        build.args(["--model", &source]);
    }
    weightd_benches::run(&mut build)?;
    let disk = LoopMount::read_only(&image, &work.join("disks/disk"))?;
    let (mut without, mut with, mut read) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=bench.rounds {
        eprintln!("adopt, round {round}");
        without.push(ready(&work, "[tiers]\ndirectories = []", 0)?);
        let before = bytes_read(disk.path())?;
        let pattern = work.join("disks/*");
        with.push(ready(&work, &format!("[tiers]\ndirectories = [{pattern:?}]"), MODELS)?);
        read.push(mebibytes(bytes_read(disk.path())? - before));
    }
    let mut table = Table::new(&["agent", "ready after ms", "slowest ms"]);
    for (name, times) in [("without a tier", without), ("with the disk, page cache empty", with)] {
        let slowest = times.iter().copied().fold(0.0, f64::max);
        table.push(vec![
            name.to_owned(),
            format!("{:.0}", median(times.iter().copied())),
            format!("{slowest:.0}"),
        ]);
    }
    Ok(format!(
        "## Adopting a disk with {MODELS} models of {FILES} files\n\nFrom the start of the program until it answers with all models known. \
         Read from the disk for that: {:.1} MiB of {:.0}.\n\n{}\n",
        median(read),
        mebibytes((MODELS * FILES * FILE_BYTES) as u64),
        table.markdown()
    ))
}

/// Milliseconds from the start of an agent until it lists so many snapshots.
fn ready(work: &Path, more: &str, snapshots: usize) -> Result<f64> {
    let (socket, config) = (work.join("weightd.sock"), work.join("weightd.toml"));
    let store = work.join("store");
    fs::write(
        &config,
        format!(
            "[agent]\nsocket = {socket:?}\nmetrics_address = \"off\"\n[store]\ndirectory = {store:?}\n{more}\n"
        ),
    )?;
    // Its store is there, as on a node that starts again.
    forget_pages()?;
    let started = Instant::now();
    let mut agent =
        Process::start(Command::new(binary("weightd")?).arg("--config").arg(&config), &work.join("log"))?;
    ensure!(wait_until(PATIENCE, || UnixStream::connect(&socket).is_ok()), "the agent does not listen");
    let output = Command::new(binary("weightctl")?)
        .arg("--socket")
        .arg(&socket)
        .args(["ls", "-o", "json"])
        .output()?;
    let elapsed = started.elapsed().as_secs_f64() * 1000.0;
    let listed: serde_json::Value = serde_json::from_slice(&output.stdout).context("weightctl ls")?;
    ensure!(listed.as_array().map(Vec::len) == Some(snapshots), "{listed}");
    agent.end();
    Ok(elapsed)
}

/// Bytes that the device below a directory was read, as the kernel counts.
fn bytes_read(directory: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let device = fs::metadata(directory)?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let text = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat"))?;
    let sectors: u64 =
        text.split_whitespace().nth(2).context("the third number is of sectors read")?.parse()?;
    Ok(sectors * 512)
}
