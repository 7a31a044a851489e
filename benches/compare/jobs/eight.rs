//! Eight model servers that start at the same moment on one node.

use anyhow::Result;

use super::cold::{beside_streaming, by_gcsfuse, by_runai, own};
use crate::{
    contest::{Contest, Outcome, Role},
    peers::{gcsfuse, runai},
    world::{Way, World},
};

/// Each of the peers' has a copy of its own: a model of which eight fit.
const BYTES: u64 = 1_000_000_000;
const SERVERS: usize = 8;
const BOUND: &str = "the processor, as for one program, and beside the one stream of the limit eight programs that are told of every \
                     tensor and read a byte of every page. More cores would share that out; the bytes come once already.";

pub(crate) fn measure(world: &World) -> Result<Vec<Outcome>> {
    let world = &world.of_bytes(BYTES, "smaller")?;
    [Way::Plain, Way::Tls].into_iter().map(|way| one(world, way)).collect()
}

fn one(world: &World, way: Way) -> Result<Outcome> {
    let bucket = world.bucket(way)?;
    let bucket = &bucket;
    let title = format!("Eight servers start at once, {}", way.words());
    let about = format!(
        "The job is done when the last of {SERVERS} programs holds every tensor of a model of {:.2} GB; GB/s counts the model once.",
        world.gigabytes()
    );
    let each = |how| [how; SERVERS];
    let mut contest = beside_streaming(Contest::new(title, about, world.tensor_bytes()), world, bucket).with(
        Role::Own,
        "weightd",
        "`weightd.open`",
        move || own(world, bucket, &each("ordered")),
    );
    if world.with_peers {
        contest = contest.with(Role::Peer, "runai-model-streamer", runai::SETTINGS, move || {
            by_runai(world, bucket, &each(""))
        });
    }
    // Far behind already without TLS.
    if world.with_peers && way == Way::Plain {
        contest =
            contest.with(Role::Peer, "safetensors on gcsfuse, file cache", gcsfuse::CACHED, move || {
                by_gcsfuse(world, bucket, true, &each("copied"))
            });
    }
    contest.bounded_by(BOUND).hold(&world.terms)
}
