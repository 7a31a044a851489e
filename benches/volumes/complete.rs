//! A complete volume beside the store's own files.

use std::path::Path;

use anyhow::{Result, ensure};
use weightd_benches::{Gcsfuse, Node, Sample, Table, forget_pages_of, gigabytes, mebibytes};

use crate::Bench;

/// Warm runs are short, and there are so many times more of them.
const WARM_RUNS: usize = 3;
/// The disk changes its speed from one second to the next: a file at a time, each way of reading it soon after the others,
/// and so many rounds of that for each of the others'.
const COLD_RUNS: usize = 2;

/// Bind and passthrough: the kernel reads the store's files itself.
pub(crate) fn by_the_kernel(bench: &Bench) -> Result<String> {
    let node = Node::start(&bench.place("kernel")?, &bench.bucket.gcs.endpoint(), "")?;
    let bind = node.mount("bind", &["--mode", "bind"])?;
    let through = node.mount("through", &["--mode", "fuse", "--wait"])?;
    ensure!((node.serving("bind")?.as_str(), node.serving("through")?.as_str()) == ("bind", "passthrough"));
    let native = node.native()?;
    let mut table =
        Table::new(&["what", "page cache", "native GB/s", "bind / native", "passthrough / native"]);
    let directories: [&Path; 3] = [&native, &bind, &through];
    for (how, name) in [("sequential", "read in order"), ("touch", "map and touch every page")] {
        for is_warm in [false, true] {
            eprintln!("{name}, {}", if is_warm { "warm" } else { "cold" });
            let (files, [own, bind, through]) = if is_warm {
                (1.0, in_turn(bench, is_warm, directories, |directory| bench.read(how, directory))?)
            } else {
                (bench.shards(&native).len() as f64, file_by_file(bench, how, directories)?)
            };
            table.push(vec![
                name.to_owned(),
                if is_warm { "warm" } else { "cold" }.to_owned(),
                format!("{:.2}", gigabytes(bench.bucket.model.tensor_bytes) / files / own.wall()),
                format!("{:.2}", bind.speed_relative_to(&own)),
                format!("{:.2}", through.speed_relative_to(&own)),
            ]);
        }
    }
    Ok(format!(
        "## A complete volume, read by the kernel\n\nSpeed relative to the same file in the store.\n\n{}\n",
        table.markdown()
    ))
}

/// Plain FUSE, for kernels without passthrough: the agent reads and compares every chunk with its checksum.
pub(crate) fn by_the_agent(bench: &Bench) -> Result<String> {
    let node = Node::start(&bench.place("agent")?, &bench.bucket.gcs.endpoint(), "passthrough = false")?;
    let plain = node.mount("plain", &["--mode", "fuse", "--wait"])?;
    ensure!(node.serving("plain")? == "fuse");
    let native = node.native()?;
    let peer = bench
        .with_peer
        .then(|| Gcsfuse::mount(&bench.place("gcsfuse")?, &bench.bucket.gcs.endpoint()))
        .transpose()?;
    if let Some(peer) = &peer {
        eprintln!("filling the cache of gcsfuse");
        bench.clone_tensors(&peer.model())?;
    }
    let head = [
        "what",
        "page cache",
        "native s",
        "plain FUSE s",
        "CPU s/GiB",
        "speed / native",
        "gcsfuse s",
        "speed / gcsfuse",
    ];
    let mut table = Table::new(&head);
    for (how, name) in [
        ("sequential", "read in order"),
        ("touch", "map and touch every page"),
        ("clone", "copy every tensor"),
    ] {
        for is_warm in [false, true] {
            eprintln!("{name}, plain FUSE, {}", if is_warm { "warm" } else { "cold" });
            let job = |directory: &Path| {
                if how == "clone" { bench.clone_tensors(directory) } else { bench.read(how, directory) }
            };
            let [own, plain] = in_turn(bench, is_warm, [&native, &plain], job)?;
            let (mut theirs, mut ratio) = ("-".to_owned(), "-".to_owned());
            if let Some(peer) = &peer {
                let [peer] = in_turn(bench, is_warm, [&peer.model()], job)?;
                theirs = format!("{:.2}", peer.wall());
                ratio = format!("{:.1}", plain.speed_relative_to(&peer));
            }
            table.push(vec![
                name.to_owned(),
                if is_warm { "warm" } else { "cold" }.to_owned(),
                format!("{:.2}", own.wall()),
                format!("{:.2}", plain.wall()),
                format!("{:.2}", plain.cpu() / bench.gibibytes()),
                format!("{:.2}", plain.speed_relative_to(&own)),
                theirs,
                ratio,
            ]);
        }
    }
    let [agent, keeper] = node.peaks()?.map(mebibytes);
    Ok(format!(
        "## A complete volume, read by the agent\n\nPassthrough off, as on kernels before 6.9; gcsfuse with its file cache \
         full. Peak memory: agent {agent:.0} MiB, keeper {keeper:.1} MiB.\n\n{}\n",
        table.markdown()
    ))
}

/// Reads the files of several directories in turn, none of whose pages are in memory. All are the first one's files.
fn file_by_file<const N: usize>(bench: &Bench, how: &str, directories: [&Path; N]) -> Result<[Sample; N]> {
    let mut samples = [const { Sample { costs: Vec::new() } }; N];
    bench.cool()?;
    let shards = bench.shards(Path::new(""));
    for (round, shard) in
        (0..bench.rounds * COLD_RUNS).flat_map(|round| shards.iter().map(move |shard| (round, shard)))
    {
        for at in (0..N).map(|at| (at + round) % N) {
            forget_pages_of(&directories[0].join(shard))?;
            samples[at].costs.push(bench.read_file(how, &directories[at].join(shard))?);
        }
    }
    Ok(samples)
}

/// Runs a job on several directories in turn, round by round.
fn in_turn<const N: usize>(
    bench: &Bench,
    is_warm: bool,
    directories: [&Path; N],
    job: impl Fn(&Path) -> Result<weightd_benches::Cost>,
) -> Result<[Sample; N]> {
    let mut samples = [const { Sample { costs: Vec::new() } }; N];
    if is_warm {
        for directory in directories {
            job(directory)?;
        }
    }
    for round in 0..bench.rounds * if is_warm { WARM_RUNS } else { 1 } {
        // Whoever goes first has the quieter disk.
        for at in (0..N).map(|at| (at + round) % N) {
            if !is_warm {
                bench.cool()?;
            }
            samples[at].costs.push(job(directories[at])?);
        }
    }
    Ok(samples)
}
