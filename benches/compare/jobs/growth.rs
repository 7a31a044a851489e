//! How time, processor time and memory grow with the bytes of a model, with the files that they are in, and with clients.

use std::{fs, io::Write, path::Path, process::Command};

use anyhow::{Context, Result};
use weightd_benches::{SOURCE, binary, run};

use super::durable::weightctl;
use crate::{
    contest::{Contest, Outcome, Role, Run},
    world::{Bucket, Way, World},
};

const SIZES: [u64; 5] = [520_000_000, 1_000_000_000, 2_000_000_000, 4_000_000_000, 8_000_000_000];
const FILES: [usize; 4] = [1, 10, 100, 1000];
const CLIENTS: [usize; 4] = [1, 4, 16, 64];
/// Of a model that is in many files, and of one that has many clients.
const BYTES: u64 = 1_000_000_000;
/// Most rounds: what grows does so by more than rounds differ.
const ROUNDS: usize = 2;
/// What files are written of.
const PATTERN_BYTES: usize = 1 << 20;

pub(crate) fn measure(world: &World) -> Result<Vec<Outcome>> {
    Ok(vec![by_size(world)?, by_files(world)?, by_clients(world)?])
}

fn by_size(world: &World) -> Result<Outcome> {
    let (title, about) = (
        "Prefetching more bytes",
        "Memory and the cost of a byte should stay as they are. One size is measured after the other.",
    );
    let mut contenders = Vec::new();
    // One after the other: their buckets would not all fit in memory.
    for bytes in SIZES {
        let world = &world.of_bytes(bytes, "sized")?;
        let bucket = &world.bucket(Way::Plain)?;
        let name = format!("weightd, {:.2} GB", world.gigabytes());
        let mut contest =
            Contest::new(title, about, world.file_bytes()?).with(Role::Own, name, "", move || {
                let store = world.fresh("out")?;
                bucket.run(weightctl(bucket, &store)?.args(["prefetch", SOURCE]))
            });
        contenders.extend(contest.standings(&world.terms.at_most(ROUNDS))?);
    }
    Ok(Outcome::new(title, about, contenders, ""))
}

/// The same bytes in more and more files.
fn by_files(world: &World) -> Result<Outcome> {
    let mut buckets = Vec::new();
    for count in FILES {
        let directory = world.fresh("files")?;
        write_files(&directory, count)?;
        // It holds them in memory from here on.
        buckets.push((count, world.bucket_of(&directory)?));
    }
    world.fresh("files")?;
    let mut contest = Contest::new("Prefetching as many bytes in more files", "", BYTES);
    for (count, bucket) in &buckets {
        contest = contest.with(Role::Own, format!("weightd, files: {count}"), "", move || {
            let store = world.fresh("out")?;
            bucket.run(weightctl(bucket, &store)?.args(["prefetch", SOURCE]))
        });
    }
    contest.hold(&world.terms.at_most(ROUNDS))
}

fn by_clients(world: &World) -> Result<Outcome> {
    let world = &world.of_bytes(BYTES, "smaller")?;
    let bucket = &world.bucket(Way::Plain)?;
    let about = "Each client has every tensor by hand-off from a node that has nothing, and reads a byte of every page. GB/s counts the \
                 model once. Memory is that of agent and keeper; what they share counts in each.";
    let mut contest = Contest::new("More clients at once", about, world.tensor_bytes());
    for clients in CLIENTS {
        contest = contest.with(Role::Own, format!("weightd, clients: {clients}"), "", move || {
            hold(world, bucket, clients)
        });
    }
    contest.hold(&world.terms.at_most(ROUNDS))
}

fn hold(world: &World, bucket: &Bucket, clients: usize) -> Result<Run> {
    let node = world.node(bucket)?;
    let mut borrower = Command::new(binary("borrower")?);
    borrower.arg(node.handoff_socket()?).arg(SOURCE).arg(clients.to_string());
    world.have(1)?;
    let run = bucket.timed(&node.processes(), || run(&mut borrower))?;
    // One process stands for all clients: each of their mappings of the same memory would count.
    Ok(Run { peak_bytes: Some(node.peaks()?.iter().sum()), ..run })
}

fn write_files(directory: &Path, count: usize) -> Result<()> {
    let pattern = (0..PATTERN_BYTES).map(|at| u8::try_from(at * 31 % 251)).collect::<Result<Vec<u8>, _>>()?;
    let each = usize::try_from(BYTES)? / count;
    for number in 0..count {
        let path = directory.join(format!("{number:04}.bin"));
        let mut file = fs::File::create(&path).with_context(|| format!("writing {}", path.display()))?;
        let mut left = each;
        while left > 0 {
            let part = left.min(pattern.len());
            file.write_all(&pattern[..part])?;
            left -= part;
        }
    }
    Ok(())
}
