//! Cases in which the agent lends weights in shared memory: those that it has there already, and those that it brings from the
//! origin while servers load.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::sleep;
use weightd_benches::{Node, wait_until};

use crate::{
    cases::{AWAY, LONG, STREAM, TRICKLE, load_again, mount_both},
    memory::Mapped,
    server::{Launch, Server},
    world::{SOURCES, World, script},
};

/// How tensors come where the agent lends them.
const SHARED: &str = "shared memory";
/// The same where each client has a ring of its own.
const STREAMED: &str = "stream";
/// Less than the model, and more than its largest tensor.
const RING: u64 = 64 << 20;
/// Between two looks at what loads fast.
const LOOK: Duration = Duration::from_millis(5);

/// What `resident.py` says.
#[derive(Deserialize)]
struct Resident {
    how: String,
    bytes: u64,
}

/// Has the agent of a volume take its tensors into memory, where they stay for a while; says how many bytes they have.
pub(crate) async fn make_resident(world: &World, volume: &Path) -> Result<u64> {
    let said = script(&world.python, "resident.py", &[&volume.to_string_lossy()]).await?;
    let Resident { how, bytes } = serde_json::from_str(said.lines().last().unwrap_or_default())?;
    ensure!(how == SHARED, "tensors of {} came by {how}", volume.display());
    Ok(bytes)
}

/// An arena, by the name that the kernel shows.
fn is_arena(path: &str) -> bool {
    path.starts_with("/memfd:weightd-arena")
}

fn percent(part: u64, whole: u64) -> u64 {
    part * 100 / whole
}

pub(crate) async fn resident(world: &World, ranks: usize) -> Result<String> {
    world.right(0, ranks).await?;
    let node = world.lending_node()?;
    let [volume, _] = mount_both(world, &node)?;
    let bytes = make_resident(world, &volume).await?;
    let fetched = world.proxy.bytes();
    let mut server = Server::start(world, &Launch::of(&volume, ranks))?;
    server.until_opened().await?;
    let mut most: BTreeMap<u32, Mapped> = BTreeMap::new();
    // It loads in less time than may pass between two looks, so this is what was seen.
    server
        .until_loaded(|server| {
            for (process, mapped) in server.memory(&is_arena) {
                let known = most.entry(process).or_default();
                if mapped.resident > known.resident {
                    *known = mapped;
                }
            }
        })
        .await?;
    let ready = server.until_ready().await?;
    server.ensure_how(SHARED, ranks)?;
    let tokens = world.compare(&server.tokens().await?, 0, ranks).await?;
    ensure!(world.proxy.bytes() == fetched, "the origin was asked for what is in memory");
    let seen: Vec<_> = most.values().map(|rank| format!("{} %", percent(rank.resident, bytes))).collect();
    Ok(format!(
        "{tokens} tokens equal; {SHARED}, resident before it started; ready after {:.0} s; while it loaded ranks were seen with {} \
         of it mapped",
        ready.as_secs_f64(),
        seen.join(" and ")
    ))
}

/// What ranks have mapped while all of them wait for the rest of a model, which comes in a trickle since most of it is here.
async fn while_all_wait(world: &World, server: &Server, ranks: usize, before: u64) -> Result<String> {
    let (started, whole) = (Instant::now(), world.weight_bytes()?);
    while world.proxy.bytes() - before < whole * 3 / 4 {
        sleep(LOOK).await;
    }
    world.proxy.limit(TRICKLE);
    let mut mapped: Vec<Mapped>;
    loop {
        mapped = server.memory(&is_arena).into_values().collect();
        if mapped.len() == ranks && mapped.iter().all(|rank| rank.resident > whole / 8) {
            break;
        }
        ensure!(started.elapsed() < LONG, "{} of {ranks} ranks use what has come", mapped.len());
        sleep(LOOK).await;
    }
    ensure!(!server.has_loaded(), "it had loaded everything before anyone looked");
    world.proxy.limit(STREAM);
    let own: u64 = mapped.iter().map(|rank| rank.own).sum();
    ensure!(own < whole / 100, "ranks have {own} bytes of pages of their own");
    let share =
        |rank: &Mapped| format!("{} % (PSS {} %)", percent(rank.resident, whole), percent(rank.share, whole));
    let shares: Vec<_> = mapped.iter().map(share).collect();
    Ok(format!("{} of it mapped, {own} bytes in pages of their own", shares.join(" and ")))
}

/// A server that has opened weights which are nowhere on the node: its loader names their origin to the agent.
async fn opened(world: &World, node: &Node, ranks: usize, mut options: Value) -> Result<Server> {
    let bare = world.bare(node)?;
    options["source"] = SOURCES[0].into();
    let (extra, socket) = (Some(options), Some(node.handoff_socket()?));
    let mut server = Server::start(world, &Launch { extra, socket, ..Launch::of(&bare, ranks) })?;
    server.until_opened().await?;
    Ok(server)
}

/// Weights that are nowhere on the node: the loader names their origin to the agent.
pub(crate) async fn origin(world: &World, ranks: usize, is_verified: bool) -> Result<String> {
    world.right(0, ranks).await?;
    world.proxy.limit(STREAM);
    let node = world.lending_node()?;
    let before = world.proxy.bytes();
    let options = if is_verified { json!({ "verified": true }) } else { json!({}) };
    let mut server = opened(world, &node, ranks, options).await?;
    let mapped = while_all_wait(world, &server, ranks, before).await?;
    let ready = server.until_ready().await?;
    server.ensure_how(SHARED, ranks)?;
    let tokens = world.compare(&server.tokens().await?, 0, ranks).await?;
    let share = fetched_once(world, &node, before)?;
    let waited =
        if is_verified { ", each file compared with the origin's checksum before it was used" } else { "" };
    Ok(format!(
        "{tokens} tokens equal; {SHARED}, nothing on the node before{waited}; {share} % of the bytes were fetched for \
         {ranks} rank{}; ready after {:.0} s; before the end each rank had {mapped}",
        if ranks == 1 { "" } else { "s" },
        ready.as_secs_f64(),
    ))
}

/// Weights that are nowhere on the node, through rings that are smaller than the model.
pub(crate) async fn ring(world: &World, ranks: usize) -> Result<String> {
    world.right(0, ranks).await?;
    world.proxy.limit(STREAM);
    let node = world.lending_node()?;
    let (before, whole) = (world.proxy.bytes(), world.weight_bytes()?);
    ensure!(RING < whole / 2, "a model of {whole} bytes goes through no ring of {RING}");
    let mut server = opened(world, &node, ranks, json!({ "stream": RING })).await?;
    let ready = server.until_ready().await?;
    server.ensure_how(STREAMED, ranks)?;
    let tokens = world.compare(&server.tokens().await?, 0, ranks).await?;
    let share = fetched_once(world, &node, before)?;
    Ok(format!(
        "{tokens} tokens equal; through rings of {} MiB of their own, nothing on the node before; {share} % of the bytes were \
         fetched for {ranks} rank{}; ready after {:.0} s",
        RING >> 20,
        if ranks == 1 { "" } else { "s" },
        ready.as_secs_f64()
    ))
}

/// How many of a hundred bytes of the model the origin was asked for since then. The store has it now.
fn fetched_once(world: &World, node: &Node, before: u64) -> Result<u64> {
    ensure!(wait_until(LONG, || node.native().is_ok()), "the store has not got the model");
    let (fetched, whole) = (world.proxy.bytes() - before, world.weight_bytes()?);
    // A request that is cut short for what is wanted more has bytes on the way.
    ensure!(fetched < whole + whole / 8, "{fetched} bytes were fetched of {whole}");
    Ok(percent(fetched, whole))
}

/// The agent is killed when a server has mapped everything and used some of it.
pub(crate) async fn killed_when_resident(world: &World) -> Result<String> {
    world.right(0, 1).await?;
    let mut node = world.lending_node()?;
    let [volume, _] = mount_both(world, &node)?;
    let bytes = make_resident(world, &volume).await?;
    let mut server = Server::start(world, &Launch::of(&volume, 1))?;
    server.until_opened().await?;
    // It loads faster than anyone looks, so it stands still while the agent is killed.
    let held = server.hold()?;
    let used: u64 = server.memory(&is_arena).values().map(|rank| rank.resident).sum();
    ensure!(!server.has_loaded(), "it had loaded everything before the agent was killed");
    node.kill_agent()?;
    drop(held);
    server.until_loaded(|_| {}).await.context("without an agent")?;
    node.start_agent()?;
    let ready = server.until_ready().await?;
    let tokens = world.compare(&server.tokens().await?, 0, 1).await?;
    server.ensure_how(SHARED, 1)?;
    // The next agent has it in memory still, and lends it to whoever comes.
    let again = make_resident(world, &volume).await?;
    ensure!(again == bytes, "the next agent lends {again} bytes, not {bytes}");
    Ok(format!(
        "{tokens} tokens equal; {SHARED}; killed when {} % was mapped, loaded before the next agent came, which lends it too; \
         ready after {:.0} s",
        percent(used, bytes),
        ready.as_secs_f64()
    ))
}

/// The agent is killed while what it lends is still on its way from the origin.
pub(crate) async fn killed_on_the_way(world: &World) -> Result<String> {
    world.right(0, 1).await?;
    world.proxy.limit(STREAM);
    let mut node = world.lending_node()?;
    let (before, whole) = (world.proxy.bytes(), world.weight_bytes()?);
    let mut server = opened(world, &node, 1, json!({})).await?;
    while world.proxy.bytes() - before < whole / 2 {
        ensure!(!server.has_loaded(), "it had loaded everything before half of the bytes came");
        sleep(LOOK).await;
    }
    node.kill_agent()?;
    let share = percent(world.proxy.bytes() - before, whole);
    sleep(AWAY).await;
    ensure!(!server.has_loaded(), "it had loaded everything before another agent came");
    node.start_agent()?;
    let ready = server.until_ready().await?;
    server.ensure_how(SHARED, 1)?;
    let tokens = world.compare(&server.tokens().await?, 0, 1).await?;
    ensure!(wait_until(LONG, || node.native().is_ok()), "the store has not got the model");
    let fetched = percent(world.proxy.bytes() - before, whole);
    Ok(format!(
        "{tokens} tokens equal; {SHARED}; killed after {share} % of the bytes, {} s without an agent, {fetched} % of the bytes \
         fetched in all; ready after {:.0} s",
        AWAY.as_secs(),
        ready.as_secs_f64()
    ))
}

pub(crate) async fn sleep_and_reload(world: &World) -> Result<String> {
    let node = world.lending_node()?;
    let [volume, other] = mount_both(world, &node)?;
    make_resident(world, &volume).await?;
    load_again(world, &Launch::of(&volume, 1), &other, SHARED).await
}
