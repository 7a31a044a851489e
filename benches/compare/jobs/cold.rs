//! From the bucket to every tensor in memory, on a node that has never heard of the model.

use anyhow::{Result, ensure};
use weightd_benches::{Client, SOURCE};

use crate::{
    contest::{Contest, Outcome, Role, Run},
    peers::{gcsfuse, runai},
    world::{Bucket, Way, World, text},
};

const BOUND: &str = "the processor. Bucket, weightd and program share the cores, and beside what the limit does weightd sums every \
                     byte, puts it where all programs share it and writes it to the disk, and the program reads a byte of every \
                     page. A client that receives straight into that memory would save a copy, and a bucket that is another machine \
                     would leave its share of the cores.";

pub(crate) fn measure(world: &World) -> Result<Vec<Outcome>> {
    Way::ALL.into_iter().map(|way| one(world, way)).collect()
}

fn one(world: &World, way: Way) -> Result<Outcome> {
    let bucket = world.bucket(way)?;
    let bucket = &bucket;
    let title = format!("Bucket to all tensors in memory, {}", way.words());
    let about = "The job is done when a program holds every tensor as a torch tensor; it had imported everything before. What weightd \
                 brings is also kept on the node's disk, verified, which nobody else does.";
    let mut contest = beside_streaming(Contest::new(title, about, world.tensor_bytes()), world, bucket).with(
        Role::Own,
        "weightd",
        "`weightd.open`, tensors in the order of the files",
        move || own(world, bucket, &["ordered"]),
    );
    if world.with_peers {
        contest = contest.with(Role::Peer, "runai-model-streamer", runai::SETTINGS, move || {
            by_runai(world, bucket, &[""])
        });
        for (has_cache, settings) in gcsfuse::settings(way) {
            let name = format!("safetensors on gcsfuse{}", if has_cache { ", file cache" } else { "" });
            contest = contest
                .with(Role::Peer, name, settings, move || by_gcsfuse(world, bucket, has_cache, &["copied"]));
        }
    }
    contest.bounded_by(BOUND).hold(&world.terms)
}

/// Adds the limit of whoever wants the whole model in memory.
pub(super) fn beside_streaming<'w>(
    contest: Contest<'w>,
    world: &'w World,
    bucket: &'w Bucket,
) -> Contest<'w> {
    contest.with(Role::Limit, "limit: streamed into memory", "no checksum, no disk", move || {
        world.floor(bucket, "--keep")
    })
}

/// Programs that take tensors from an agent that has nothing, one for each of what they are told.
pub(super) fn own(world: &World, bucket: &Bucket, told: &[&str]) -> Result<Run> {
    let node = world.node(bucket)?;
    let socket = node.handoff_socket()?;
    let environment = [("WEIGHTD_HANDOFF_SOCKET", text(&socket)?)];
    let start = |how: &&str| world.client("by_weightd.py", SOURCE, how, &environment);
    let mut clients = told.iter().map(start).collect::<Result<Vec<_>>>()?;
    world.have_with(1, &mut clients)?;
    let run = bucket.load(&mut clients, &node.processes())?;
    clients.iter_mut().try_for_each(Client::check)?;
    node.prefetch(SOURCE)?;
    ensure!(node.native()?.is_dir(), "the model is not in the store");
    Ok(run)
}

/// The same by runai-model-streamer, which has no agent.
pub(super) fn by_runai(world: &World, bucket: &Bucket, told: &[&str]) -> Result<Run> {
    let start = |how: &&str| runai::of_bucket(world, bucket, SOURCE, how);
    let mut clients = told.iter().map(start).collect::<Result<Vec<_>>>()?;
    world.have_with(u64::try_from(told.len())?, &mut clients)?;
    let run = bucket.load(&mut clients, &[])?;
    clients.iter_mut().try_for_each(Client::check)?;
    Ok(run)
}

/// The same by safetensors from a mounted bucket.
pub(super) fn by_gcsfuse(world: &World, bucket: &Bucket, has_cache: bool, told: &[&str]) -> Result<Run> {
    let mounted = gcsfuse::mount(&world.fresh("gcsfuse")?.join("mount"), bucket, has_cache)?;
    let source = mounted.model();
    let start = |how: &&str| world.client("by_safetensors.py", text(&source)?, how, &[]);
    let mut clients = told.iter().map(start).collect::<Result<Vec<_>>>()?;
    // The page cache has it once, and each program.
    world.have_with(u64::try_from(told.len())? + 1, &mut clients)?;
    let run = bucket.load(&mut clients, &[mounted.pid()])?;
    clients.iter_mut().try_for_each(Client::check)?;
    Ok(run)
}
