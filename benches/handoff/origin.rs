//! A model that the node has never heard of: from its bucket into memory, while it is kept on the disk.

use std::{process::Command, time::Instant};

use anyhow::{Result, ensure};
use weightd_benches::{
    BUCKET, Client, Cost, Loaded, Node, SOURCE, Sample, Table, binary, gigabytes, median, memory_available,
    run, written_by,
};

use crate::world::{Runs, World, cpu, order, text, timed};

/// Processes that want the model at the same moment.
const AT_ONCE: usize = 4;
/// What is left to the rest of the machine when each of them has a copy of its own.
const RESERVE_BYTES: u64 = 4 << 30;

/// One process.
pub(crate) fn one(world: &World) -> Result<String> {
    let count = if world.with_peers { 3 } else { 2 };
    let (mut limit, mut own, mut peer) = (Sample::default(), Runs::default(), Runs::default());
    let mut durable = Vec::new();
    for round in 0..world.rounds {
        eprintln!("from the bucket, round {}", round + 1);
        for at in order(count, round) {
            match at {
                0 => limit.costs.push(discard(world)?),
                1 => {
                    let (run, seconds) = own_load(world)?;
                    own.push(run);
                    durable.push(seconds);
                }
                _ => {
                    world.hold(1)?;
                    let mut client = runai(world)?;
                    world.warm(&world.bucket.model.directory)?;
                    world.give_up()?;
                    peer.push(timed(&mut client, None)?);
                    client.check()?;
                }
            }
        }
    }
    let mut table = Table::new(&[
        "what",
        "all tensors after s",
        "GB/s",
        "speed / limit",
        "first tensor after ms",
        "slowest first",
        "CPU s/GiB",
    ]);
    let mut add = |what: &str, sample: &Sample, first: &[f64]| {
        let millis = || first.iter().map(|seconds| seconds * 1e3);
        let shown = |millis: f64| if first.is_empty() { "-".to_owned() } else { format!("{millis:.0}") };
        table.push(vec![
            what.to_owned(),
            format!("{:.2}", sample.wall()),
            format!("{:.2}", world.gigabytes() / sample.wall()),
            format!("{:.2}", sample.speed_relative_to(&limit)),
            shown(median(millis())),
            shown(millis().fold(0.0, f64::max)),
            format!("{:.2}", sample.cpu() / world.gibibytes()),
        ]);
    };
    add("limit: streamed and thrown away", &limit, &[]);
    add("weightd", &own.all, &own.first);
    let mut text = String::new();
    if world.with_peers {
        add("runai-model-streamer", &peer.all, &peer.first);
        text = format!("{:.1} times as fast as runai-model-streamer. ", own.all.speed_relative_to(&peer.all));
    }
    Ok(format!(
        "## From a bucket to memory\n\nThe node has nothing of the model. {text}What weightd gives is also on the node's disk, \
         durable and compared with the bucket's\nchecksums, {:.2} s after the last tensor came. The limit of a first tensor is 300 \
         ms; it is the first of the first file, of {:.0} MB.\n\n{}\n",
        median(durable),
        world
            .bucket
            .model
            .shards
            .iter()
            .flatten()
            .next()
            .map_or(0.0, |tensor| gigabytes(tensor.bytes()) * 1e3),
        table.markdown()
    ))
}

/// Several at the same moment.
pub(crate) fn four(world: &World) -> Result<String> {
    let (mut own, mut peer) = (At::default(), At::default());
    let has_room = memory_available()? > AT_ONCE as u64 * world.bytes() + RESERVE_BYTES;
    if world.with_peers && !has_room {
        eprintln!(
            "warning: THERE IS NO MEMORY FOR {AT_ONCE} COPIES OF THE MODEL: NOTHING IS MEASURED BESIDE runai-model-streamer"
        );
    }
    let count = if world.with_peers && has_room { 2 } else { 1 };
    for round in 0..world.rounds {
        eprintln!("{AT_ONCE} processes at once from the bucket, round {}", round + 1);
        for at in order(count, round) {
            if at == 0 {
                let node = world.node("four", "")?;
                own.push(at_once(world, 1, Some(&node))?);
            } else {
                peer.push(at_once(world, AT_ONCE as u64, None)?);
            }
        }
    }
    let mut table = Table::new(&["what", "all have all after s", "sent by the bucket / model", "CPU s/GiB"]);
    let mut add = |what: &str, at: &At| {
        table.push(vec![
            format!("{AT_ONCE} processes, {what}"),
            format!("{:.2}", at.all.wall()),
            format!("{:.2}", median(at.sent.iter().map(|sent| gigabytes(*sent))) / world.gigabytes()),
            format!("{:.2}", at.all.cpu() / world.gibibytes()),
        ]);
    };
    add("weightd", &own);
    let mut text = String::new();
    if count > 1 {
        add("runai-model-streamer", &peer);
        text = format!("{:.1} times as fast as runai-model-streamer. ", own.all.speed_relative_to(&peer.all));
    }
    Ok(format!(
        "## From a bucket to {AT_ONCE} processes at once\n\n{text}Bytes are those that the emulator has written to its \
         connections.\n\n{}\n",
        table.markdown()
    ))
}

/// What several processes did at the same moment, in all rounds.
#[derive(Debug, Clone, Default)]
struct At {
    /// Until the last had everything.
    all: Sample,
    /// Bytes that the bucket has sent.
    sent: Vec<u64>,
}

impl At {
    fn push(&mut self, (cost, sent): (Cost, u64)) {
        self.all.costs.push(cost);
        self.sent.push(sent);
    }
}

fn at_once(world: &World, copies: u64, node: Option<&Node>) -> Result<(Cost, u64)> {
    world.hold(copies)?;
    let start = |_| node.map_or_else(|| runai(world), |node| borrower(world, node));
    let mut clients = (0..AT_ONCE).map(start).collect::<Result<Vec<_>>>()?;
    world.warm(&world.bucket.model.directory)?;
    world.give_up()?;
    let emulator = world.bucket.gcs.pid();
    let (started, before, sent) = (Instant::now(), cpu(&clients, node)?, written_by(emulator)?);
    clients.iter_mut().try_for_each(Client::begin)?;
    for client in &mut clients {
        client.loaded()?;
    }
    let wall = started.elapsed();
    let (cpu, sent) = (cpu(&clients, node)?.saturating_sub(before), written_by(emulator)? - sent);
    clients.iter_mut().try_for_each(Client::check)?;
    Ok((Cost { wall, cpu, peak_bytes: 0 }, sent))
}

/// The bytes alone.
fn discard(world: &World) -> Result<Cost> {
    let mut command = Command::new(binary("floor")?);
    command.env("STORAGE_EMULATOR_HOST", world.bucket.gcs.endpoint());
    command.args(["--bucket", BUCKET, "--prefix", "model", "--discard"]);
    world.warm(&world.bucket.model.directory)?;
    run(&mut command)
}

/// Gives how long it took until all was durable, too.
fn own_load(world: &World) -> Result<((Loaded, Cost), f64)> {
    let node = world.node("origin", "")?;
    world.hold(1)?;
    let mut client = borrower(world, &node)?;
    world.warm(&world.bucket.model.directory)?;
    world.give_up()?;
    let run = timed(&mut client, Some(&node))?;
    let all = Instant::now();
    node.prefetch(SOURCE)?;
    let durable = all.elapsed().as_secs_f64();
    client.check()?;
    ensure!(node.native()?.is_dir(), "the model is not in the store");
    Ok((run, durable))
}

fn borrower(world: &World, node: &Node) -> Result<Client> {
    let socket = node.handoff_socket()?;
    world.client_with("by_weightd.py", SOURCE, "ordered", &[("WEIGHTD_HANDOFF_SOCKET", text(&socket)?)])
}

fn runai(world: &World) -> Result<Client> {
    let endpoint = world.bucket.gcs.endpoint();
    let environment = [
        // Its list of files is made by Google's own client, which is told so.
        ("STORAGE_EMULATOR_HOST", endpoint.as_str()),
        ("GOOGLE_CLOUD_PROJECT", "none"),
        ("CLOUD_STORAGE_EMULATOR_ENDPOINT", endpoint.as_str()),
        ("RUNAI_STREAMER_GCS_USE_ANONYMOUS_CREDENTIALS", "true"),
    ];
    world.client_with("by_runai.py", SOURCE, "", &environment)
}
