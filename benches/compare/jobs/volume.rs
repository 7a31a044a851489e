//! Map every file of a volume and touch every page, while the model is still on its way, and afterwards.

use std::{path::Path, process::Command};

use anyhow::Result;
use weightd_benches::{Cost, Gcsfuse, binary, cpu_of, forget_pages, peak_of, run};

use super::cold::beside_streaming;
use crate::{
    contest::{Contest, Outcome, Role, Run},
    peers::gcsfuse,
    world::{Bucket, Way, World},
};

const BOUND: &str = "one thread that touches page after page and waits for each read of FUSE, beside bulk that runs ahead of it at the \
                     bucket's speed and whose bytes are then read back from the disk. The limit has no reader. Bulk that waits for \
                     its reader, as long as what is between them fits into memory, would save the way over the disk.";

pub(crate) fn measure(world: &World) -> Result<Vec<Outcome>> {
    let ways = [Way::Plain, Way::Tls].into_iter().map(|way| loading(world, way));
    ways.chain([complete(world)]).collect()
}

/// Nothing is there yet: mounting is part of it.
fn loading(world: &World, way: Way) -> Result<Outcome> {
    let bucket = world.bucket(way)?;
    let bucket = &bucket;
    let title = format!("Map and touch a volume that still loads, {}", way.words());
    let about = "From the command that mounts a model that the node does not have, until every page of every shard was touched.";
    let mut contest = beside_streaming(Contest::new(title, about, world.tensor_bytes()), world, bucket).with(
        Role::Own,
        "weightd",
        "`weightctl mount`",
        move || {
            let node = world.node(bucket)?;
            world.have(1)?;
            let run = bucket.timed(&node.processes(), || {
                let volume = node.mount("model", &[])?;
                touch(world, &volume)
            })?;
            world.check(&node.target("model"))?;
            Ok(run)
        },
    );
    if world.with_peers {
        for (has_cache, settings) in [(true, gcsfuse::CACHED), (false, gcsfuse::UNCACHED)] {
            let name = if has_cache { "gcsfuse, file cache" } else { "gcsfuse" };
            contest = contest.with(Role::Peer, name, settings, move || {
                let place = world.fresh("gcsfuse")?.join("mount");
                world.have(1)?;
                let mut mounted = None;
                let run = bucket.timed(&[], || {
                    let mounted = mounted.insert(gcsfuse::mount(&place, bucket, has_cache)?);
                    let cost = touch(world, &mounted.model())?;
                    // It began with the job: all that it took is of it.
                    let cpu = cost.cpu + cpu_of(mounted.pid())?;
                    Ok(Cost { cpu, peak_bytes: cost.peak_bytes + peak_of(mounted.pid())?, ..cost })
                })?;
                world.check(&Gcsfuse::model_in(&place))?;
                Ok(run)
            });
        }
    }
    contest.bounded_by(BOUND).hold(&world.terms)
}

/// All is on the node's disk, and nothing in the page cache.
fn complete(world: &World) -> Result<Outcome> {
    let bucket = world.bucket(Way::Plain)?;
    let bucket = &bucket;
    let node = world.node(bucket)?;
    let volume = node.mount("model", &["--wait"])?;
    let native = node.native()?;
    let about = "Everything is on the node's disk; the page cache is empty.";
    let cold = move |helpers: &[u32], directory: &Path| -> Result<Run> {
        forget_pages()?;
        bucket.timed(helpers, || touch(world, directory))
    };
    let (node, volume, native) = (&node, &volume, &native);
    world.check(volume)?;
    let filled = if world.with_peers { Some(filled(world, bucket)?) } else { None };
    let mut contest = Contest::new("Map and touch a complete volume", about, world.tensor_bytes())
        .with(Role::Limit, "limit: the store's own files", "", move || cold(&[], native))
        .with(Role::Own, "weightd", "the same volume", move || cold(&node.processes(), volume));
    if let Some(mounted) = &filled {
        contest = contest.with(Role::Peer, "gcsfuse, its file cache full", gcsfuse::CACHED, move || {
            cold(&[mounted.pid()], &mounted.model())
        });
    }
    contest.hold(&world.terms)
}

/// A mounted bucket whose cache has every file.
fn filled(world: &World, bucket: &Bucket) -> Result<Gcsfuse> {
    let mounted = gcsfuse::mount(&world.fresh("gcsfuse")?.join("mount"), bucket, true)?;
    world.check(&mounted.model())?;
    Ok(mounted)
}

fn touch(world: &World, directory: &Path) -> Result<Cost> {
    run(Command::new(binary("reader")?).arg("touch").args(world.shards(directory)))
}
