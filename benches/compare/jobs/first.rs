//! A pod wants a model that its node has never heard of: how soon does its server have a first tensor?

use std::{path::Path, time::Instant};

use anyhow::Result;
use weightd_benches::{Client, Gcsfuse, SOURCE, run};

use crate::{
    contest::{Contest, Outcome, Role, Run},
    peers::{gcloud, gcsfuse, runai},
    world::{Bucket, Way, World, text},
};

const BOUND: &str = "the processor, and what comes before. About a fifth is the volume: `weightctl` starts, the bucket is listed, the \
                     volume mounted, which the limit has behind it. Then the tensor is summed and put where all programs share it, \
                     on the cores that bucket and program use. A bucket that is another machine would leave its share of them.";

pub(crate) fn measure(world: &World) -> Result<Vec<Outcome>> {
    [Way::Plain, Way::Shaped].into_iter().map(|way| one(world, way)).collect()
}

fn one(world: &World, way: Way) -> Result<Outcome> {
    let bucket = world.bucket(way)?;
    let bucket = &bucket;
    let title = format!("From a pod that wants a model to its first tensor, {}", way.words());
    let about = "From the call that asks for the volume, or the command that stands for it, until a program that had imported everything \
                 holds its first tensor, which is of 262 MB where it is the first of the files. Agents and drivers run already. What the \
                 bucket sent is until the last tensor came.";
    let mut contest = Contest::new(title, about, 0)
        .with(Role::Limit, "limit: the first tensor alone", "eight requests share it out", move || {
            world.floor(bucket, "--first-tensor")
        })
        .with(Role::Own, "weightd", "`weightctl mount`, and `weightd.open` of the volume", move || {
            let node = world.node(bucket)?;
            let volume = node.target("model");
            let client = world.client("by_weightd.py", text(&volume)?, "ordered", &[])?;
            until_first(world, bucket, client, || node.mount("model", &[]).map(drop))
        });
    if world.with_peers {
        contest = contest
            .with(Role::Peer, "runai-model-streamer", runai::SETTINGS, move || {
                let client = runai::of_bucket(world, bucket, SOURCE, "")?;
                until_first(world, bucket, client, || Ok(()))
            })
            .with(Role::Peer, "gcloud storage cp, then safetensors", gcloud::COPYING, move || {
                let out = world.fresh("out")?;
                let client = by_safetensors(world, &out.join("model"))?;
                until_first(world, bucket, client, || run(&mut gcloud::copy(bucket, &out)).map(drop))
            })
            .with(Role::Peer, "safetensors on gcsfuse, file cache", gcsfuse::CACHED, move || {
                on_gcsfuse(world, bucket)
            });
    }
    contest.bounded_by(BOUND).hold(&world.terms)
}

fn on_gcsfuse(world: &World, bucket: &Bucket) -> Result<Run> {
    let place = world.fresh("gcsfuse")?.join("mount");
    let client = by_safetensors(world, &Gcsfuse::model_in(&place))?;
    let mut mounted = None;
    until_first(world, bucket, client, || {
        mounted = Some(gcsfuse::mount(&place, bucket, true)?);
        Ok(())
    })
}

fn by_safetensors(world: &World, directory: &Path) -> Result<Client> {
    world.client("by_safetensors.py", text(directory)?, "copied", &[])
}

/// Has the files come, and a program take them. It goes on to the last tensor, which are compared as always.
fn until_first(
    world: &World,
    bucket: &Bucket,
    client: Client,
    come: impl FnOnce() -> Result<()>,
) -> Result<Run> {
    let mut clients = [client];
    world.have_with(1, &mut clients)?;
    let (started, sent) = (Instant::now(), bucket.sent()?);
    come()?;
    let before = started.elapsed().as_secs_f64();
    let run = bucket.load(&mut clients, &[])?;
    clients[0].check()?;
    let first = before + run.first.unwrap_or(run.wall);
    let origin_bytes = bucket.sent()? - sent;
    // What came before the load, and what went on after the first tensor, are not of one kind.
    Ok(Run { wall: first, first: Some(first), origin_bytes, ..Run::default() })
}
