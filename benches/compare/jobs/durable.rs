//! From the bucket to files on the disk that stay.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use weightd_benches::{SOURCE, binary};

use crate::{
    contest::{Contest, Outcome, Role},
    peers::{gcloud, rclone},
    world::{Bucket, Way, World},
};

const BOUND: &str = "a start and an end that the limit has not: what there is to fetch has to be asked before any of it comes, in answers \
                     that each take 50 ms from a shaped bucket, and the records are synced behind the bytes. Neither grows \
                     with the model.";

pub(crate) fn measure(world: &World) -> Result<Vec<Outcome>> {
    Way::ALL.into_iter().map(|way| one(world, way)).collect()
}

fn one(world: &World, way: Way) -> Result<Outcome> {
    let bucket = world.bucket(way)?;
    let bucket = &bucket;
    let title = format!("Bucket to durable files, {}", way.words());
    let about = "The job is done when every byte is on the disk and would outlive a power failure.";
    let mut contest = Contest::new(title, about, world.file_bytes()?)
        .with(Role::Limit, "limit: streamed and written", "no checksum, no index, no resume", move || {
            let out = world.fresh("out")?;
            bucket.run(bucket.floor()?.arg("--out").arg(&out))
        })
        .with(Role::Own, "weightd", "`weightctl prefetch`", move || {
            let store = world.fresh("out")?;
            let run = bucket.run(weightctl(bucket, &store)?.args(["prefetch", SOURCE]))?;
            check(world, &path(bucket, &store)?)?;
            Ok(run)
        });
    if world.with_peers {
        contest = contest
            .with(Role::Peer, "gcloud storage cp", gcloud::SETTINGS, move || {
                let out = world.fresh("out")?;
                let run = bucket.run(&mut gcloud::copy_durably(bucket, &out))?;
                check(world, &out.join("model"))?;
                Ok(run)
            })
            .with(Role::Peer, "rclone copy", rclone::SETTINGS, move || {
                let out = world.fresh("out")?;
                let run = bucket.run(&mut rclone::copy(bucket, &out))?;
                check(world, &out)?;
                Ok(run)
            });
    }
    contest.bounded_by(BOUND).hold(&world.terms)
}

/// Our command with a store, on a disk that it may fill like everyone else.
pub(super) fn weightctl(bucket: &Bucket, store: &Path) -> Result<Command> {
    let config = store.with_extension("toml");
    fs::write(&config, format!("[store]\ndirectory = {store:?}\nfloor = 0.01\n"))?;
    let mut command = bucket.command(binary("weightctl")?);
    command.arg("--config").arg(config);
    Ok(command)
}

/// Where the model's files are in a store.
fn path(bucket: &Bucket, store: &Path) -> Result<PathBuf> {
    let output = weightctl(bucket, store)?.args(["path", SOURCE]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().into())
}

/// What lies there is the model.
fn check(world: &World, directory: &Path) -> Result<()> {
    world.check(directory)?;
    let config = |directory: &Path| fs::read(directory.join("config.json")).context("reading config.json");
    ensure!(config(directory)? == config(&world.model.directory)?, "config.json is another");
    Ok(())
}
