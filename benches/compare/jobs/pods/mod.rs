//! From `kubectl apply` to the first token of a `vllm serve` pod, on a real Kubernetes of one node.

mod spec;
mod stage;
mod timing;

use anyhow::Result;
use weightd_harness::Unready;

use crate::{
    contest::{Contest, Outcome, Role, Run},
    peers::{gcloud, gcsfuse},
    world::{World, wait},
};
use spec::Way;
use stage::Stage;

/// Most rounds: a pod takes most of a minute, most of which is vLLM's own.
const ROUNDS: usize = 1;

pub(crate) fn measure(world: &World) -> Result<Vec<Outcome>> {
    let stage = match Stage::make(world) {
        Ok(stage) => stage,
        Err(error) => {
            let impossible = |unready: &Unready| {
                matches!(unready, Unready::NotInstalled { .. } | Unready::NotAllowed { .. })
            };
            if error.downcast_ref().is_some_and(impossible) {
                eprintln!("warning: pods ARE NOT MEASURED: {error:#}");
                return Ok(Vec::new());
            }
            return Err(error);
        }
    };
    let about = format!(
        "From `kubectl apply` until a pod's `vllm serve` has answered with its first token. The model is a Llama of {:.2} GB with random \
         weights, the bucket answers as a real one does, over plain HTTP; each starts once. The image is on the node already, and \
         everything of Python in the page cache, and vLLM has seen the model's class before, for everyone alike; nothing of the model is on the node, but for the limit. Eight \
         greedy tokens of each pod are those of the limit. CPU is that of the whole machine, Kubernetes included, without the bucket.",
        weightd_benches::gigabytes(stage.file_bytes())
    );
    let stage = &stage;
    let run = move |way: Way| move || -> Result<Run> { wait(timing::run(stage, way)) };
    let mut contest = Contest::new("Pod to first token", about, stage.file_bytes())
        .with(
            Role::Limit,
            "limit: the model on the node",
            "a directory in the page cache, vLLM's own loader",
            run(Way::Local),
        )
        .with(Role::Own, "weightd", spec::OWN, run(Way::Own));
    if world.with_peers {
        contest = contest
            .with(
                Role::Peer,
                "gcsfuse in a sidecar, file cache",
                format!("{}, {}", gcsfuse::CACHED, spec::GCSFUSE),
                run(Way::Gcsfuse),
            )
            .with(
                Role::Peer,
                "gcloud in an init container",
                format!("{}, {}", gcloud::COPYING, spec::DOWNLOAD),
                run(Way::Download),
            );
    }
    Ok(vec![contest.hold(&world.terms.at_most(ROUNDS))?])
}
