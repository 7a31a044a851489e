//! Every tensor, copied by a loader while its model is still on the way.

use std::{fs, process::Command, time::Duration};

use anyhow::Result;
use weightd_benches::{Gcsfuse, Node, SOURCE, Sample, Table, binary, cores, mebibytes, median, run};

use crate::{Bench, whole_machine};

pub(crate) fn measure(bench: &Bench) -> Result<String> {
    let (mut prefetch, mut volume, mut peer) = (Sample::default(), Sample::default(), Sample::default());
    let (mut agent_cpu, mut agent_peak, mut keeper_peak) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=bench.rounds {
        eprintln!("copying every tensor while loading, round {round}");
        bench.cool_all_but_the_bucket()?;
        prefetch.costs.push(alone(bench)?);
        bench.cool_all_but_the_bucket()?;
        let node = Node::start(&bench.place("loading")?, &bench.bucket.gcs.endpoint(), "")?;
        let cost = whole_machine(|| {
            let target = node.mount("target", &["--warm-up"])?;
            bench.clone_tensors(&target).map(drop)
        })?;
        volume.costs.push(cost);
        agent_cpu.push(node.cpu()?.as_secs_f64());
        let [agent, keeper] = node.peaks()?.map(mebibytes);
        agent_peak.push(agent);
        keeper_peak.push(keeper);
        drop(node);
        if bench.with_peer {
            bench.cool_all_but_the_bucket()?;
            let place = bench.place("gcsfuse")?;
            // Kept until its cost is taken: unmounting it is not a part of the job.
            let mut mounted = None;
            peer.costs.push(whole_machine(|| {
                let mounted = mounted.insert(Gcsfuse::mount(&place, &bench.bucket.gcs.endpoint())?);
                bench.clone_tensors(&mounted.model()).map(drop)
            })?);
        }
    }
    let limits =
        prefetch.costs.iter().zip(&volume.costs).map(|(alone, volume)| {
            alone.wall.max(Duration::from_secs_f64(volume.cpu.as_secs_f64() / cores()))
        });
    let ratio = median(
        volume
            .costs
            .iter()
            .zip(limits)
            .map(|(volume, limit)| volume.wall.as_secs_f64() / limit.as_secs_f64()),
    );
    let mut table = Table::new(&["what", "wall s", "CPU s/GiB of the machine"]);
    let mut add = |name: &str, sample: &Sample| {
        let cpu = sample.cpu() / bench.gibibytes();
        table.push(vec![name.to_owned(), format!("{:.2}", sample.wall()), format!("{cpu:.2}")]);
    };
    add("weightctl prefetch, nobody reads", &prefetch);
    add("weightctl mount --warm-up, then every tensor", &volume);
    let mut text = "## Every tensor copied while the model loads\n\n".to_owned();
    if !peer.costs.is_empty() {
        add("gcsfuse, then every tensor", &peer);
        text += &format!("{:.1} times as fast as gcsfuse. ", volume.speed_relative_to(&peer));
    }
    Ok(format!(
        "{text}{ratio:.2} of the limit: the larger of the prefetch alone, and the run's processor time on all cores. Agent: \
         {:.2} CPU s/GiB, peak {:.0} MiB; keeper: peak {:.1} MiB.\n\n{}\n",
        median(agent_cpu) / bench.gibibytes(),
        median(agent_peak),
        median(keeper_peak),
        table.markdown()
    ))
}

/// The same model brought by a prefetch, with nobody reading it.
fn alone(bench: &Bench) -> Result<weightd_benches::Cost> {
    let place = bench.place("prefetch")?;
    fs::create_dir_all(&place)?;
    let place = place.canonicalize()?;
    let (store, config) = (place.join("store"), place.join("weightd.toml"));
    fs::write(&config, format!("[store]\ndirectory = {store:?}\nfloor = 0.05\n"))?;
    let mut command = Command::new(binary("weightctl")?);
    command.env("STORAGE_EMULATOR_HOST", bench.bucket.gcs.endpoint()).arg("--config").arg(&config);
    let cost = whole_machine(|| run(command.args(["prefetch", SOURCE])).map(drop))?;
    fs::remove_dir_all(&place)?;
    rustix::fs::sync();
    Ok(cost)
}
