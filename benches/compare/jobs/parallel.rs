//! Four ranks of a tensor-parallel server, each with its quarter of the tensors, on a node that has never heard of the model.

use anyhow::Result;

use super::cold::{beside_streaming, by_gcsfuse, by_runai, own};
use crate::{
    contest::{Contest, Outcome, Role},
    peers::{gcsfuse, runai},
    world::{Way, World},
};

const RANKS: [&str; 4] = ["0/4", "1/4", "2/4", "3/4"];

const BOUND: &str = "the processor. Four programs, the bucket and weightd share two cores; beside the one stream of the limit every byte \
                     is summed, put where all programs share it and written to the disk, and each program reads a byte of every \
                     page of its slices. Peers that are far behind run in the first round only. More cores, or a bucket that is \
                     another machine, would leave more of them.";

pub(crate) fn measure(world: &World) -> Result<Vec<Outcome>> {
    [Way::Plain, Way::Tls].into_iter().map(|way| one(world, way)).collect()
}

fn one(world: &World, way: Way) -> Result<Outcome> {
    let bucket = world.bucket(way)?;
    let bucket = &bucket;
    let title = format!("Bucket to four tensor-parallel ranks, {}", way.words());
    let about = "The job is done when the last of four programs holds its quarter of every tensor, cut along the first dimension.";
    let mut contest = beside_streaming(Contest::new(title, about, world.tensor_bytes()), world, bucket).with(
        Role::Own,
        "weightd",
        "`weightd.open` with `slices`",
        move || own(world, bucket, &RANKS),
    );
    if world.with_peers {
        contest = contest.with(Role::Peer, "runai-model-streamer", runai::SETTINGS, move || {
            by_runai(world, bucket, &RANKS)
        });
    }
    // Far behind already without TLS.
    if world.with_peers && way == Way::Plain {
        let name = "safetensors `get_slice` on gcsfuse, file cache";
        contest =
            contest.with(Role::Peer, name, gcsfuse::CACHED, move || by_gcsfuse(world, bucket, true, &RANKS));
    }
    contest.bounded_by(BOUND).hold(&world.terms)
}
