//! The cases: each is a place that a server is given, and what happens meanwhile. Here weights are mapped from the files of
//! volumes; in `lent` the agent lends them.

use std::{
    collections::BTreeMap,
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::json;
use tokio::{process::Command, time::sleep};
use weightd_benches::Node;

use crate::{
    lent,
    server::{LENGTH, Launch, Server, Tokens, prompts},
    world::{SOURCES, World, output, script},
};

/// So slow that a server that starts finds next to nothing.
pub(crate) const TRICKLE: u64 = 500_000;
/// What is left after that takes some seconds.
pub(crate) const STREAM: u64 = 15_000_000;
pub(crate) const NO_LIMIT: u64 = 0;
/// Longer than anything that is killed is away.
pub(crate) const AWAY: Duration = Duration::from_secs(2);

/// Longer than a node takes for what follows a download.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// How tensors come where the agent lends nothing.
const MAPPED: &str = "mapped files";

/// What a case came to, in words.
pub(crate) type Outcome<'a> = Pin<Box<dyn Future<Output = Result<String>> + 'a>>;
type Case = fn(&World) -> Outcome<'_>;

pub(crate) fn all() -> [(&'static str, Case); 21] {
    [
        ("stand-in", |world| Box::pin(stand_in(world))),
        ("resident, 1 rank", |world| Box::pin(lent::resident(world, 1))),
        ("resident, 2 ranks", |world| Box::pin(lent::resident(world, 2))),
        ("origin, 1 rank", |world| Box::pin(lent::origin(world, 1, false))),
        ("origin, 2 ranks", |world| Box::pin(lent::origin(world, 2, false))),
        ("origin, verified", |world| Box::pin(lent::origin(world, 1, true))),
        ("ring, 1 rank", |world| Box::pin(lent::ring(world, 1))),
        ("ring, 2 ranks", |world| Box::pin(lent::ring(world, 2))),
        ("agent killed, resident", |world| Box::pin(lent::killed_when_resident(world))),
        ("agent killed, origin", |world| Box::pin(lent::killed_on_the_way(world))),
        ("resident, sleep and reload", |world| Box::pin(lent::sleep_and_reload(world))),
        ("loading, 1 rank", |world| Box::pin(loading(world, 1))),
        ("loading, 2 ranks", |world| Box::pin(loading(world, 2))),
        ("complete, 1 rank", |world| Box::pin(complete(world, 1))),
        ("complete, 2 ranks", |world| Box::pin(complete(world, 2))),
        ("agent killed while loading", |world| Box::pin(killed(world))),
        ("source, sleep and reload", |world| Box::pin(source_and_reload(world))),
        ("mistake", |world| Box::pin(mistake(world))),
        ("transformers, loading", |world| Box::pin(transformers(world, Place::Loading))),
        ("transformers, complete", |world| Box::pin(transformers(world, Place::Complete))),
        ("transformers, resident", |world| Box::pin(transformers(world, Place::Resident))),
    ]
}

/// What the tests of every day run the plugin with is like vLLM.
async fn stand_in(world: &World) -> Result<String> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../python/tests");
    let told = async |packages: Option<&Path>| -> Result<Vec<String>> {
        let mut command = Command::new(&world.python);
        command.arg(tests.join("signatures.py")).env("VLLM_NO_USAGE_STATS", "1").env_remove("PYTHONPATH");
        packages.map(|packages| command.env("PYTHONPATH", packages));
        // vLLM logs there, too.
        Ok(output(&mut command)
            .await?
            .lines()
            .filter(|line| line.starts_with("signature "))
            .map(str::to_owned)
            .collect())
    };
    let (own, real) = (told(Some(&tests.join("stand_ins"))).await?, told(None).await?);
    for (own, real) in own.iter().zip(&real) {
        ensure!(own == real, "the stand-in of the tests has {own}, vLLM has {real}");
    }
    ensure!(
        own.len() == real.len() && !own.is_empty(),
        "{} of the stand-in, {} of vLLM",
        own.len(),
        real.len()
    );
    Ok(format!("{} signatures and settings are those of vLLM", own.len()))
}

/// Starts a server on a model of which next to nothing is here, and lets the rest come once it wants it.
async fn opened(world: &World, node: &Node, ranks: usize) -> Result<Server> {
    world.proxy.limit(TRICKLE);
    let volume = node.mount("model", &[])?;
    let mut server = Server::start(world, &Launch::of(&volume, ranks))?;
    server.until_loads().await?;
    world.proxy.limit(STREAM);
    server.until_opened().await?;
    let state = node.state("model")?;
    ensure!(state == "loading", "the volume is {state} before it was read");
    Ok(server)
}

async fn loading(world: &World, ranks: usize) -> Result<String> {
    world.right(0, ranks).await?;
    let node = world.node()?;
    let mut server = opened(world, &node, ranks).await?;
    let volume = node.target("model");
    let mut touched: BTreeMap<u32, u64> = BTreeMap::new();
    server
        .until_loaded(|server| {
            for (process, mapped) in server.memory(&|path| Path::new(path).starts_with(&volume)) {
                let most = touched.entry(process).or_default();
                *most = mapped.resident.max(*most);
            }
        })
        .await?;
    let ready = server.until_ready().await?;
    server.ensure_how(MAPPED, ranks)?;
    let tokens = world.compare(&server.tokens().await?, 0, ranks).await?;
    let bytes = world.weight_bytes()?;
    let shares: Vec<_> = touched.values().map(|touched| format!("{} %", touched * 100 / bytes)).collect();
    Ok(format!(
        "{tokens} tokens equal; loading when it was opened; ready after {:.0} s; just before the end each rank had touched {}",
        ready.as_secs_f64(),
        shares.join(" and ")
    ))
}

async fn complete(world: &World, ranks: usize) -> Result<String> {
    world.right(0, ranks).await?;
    let node = world.node()?;
    let volume = mount_both(world, &node)?[0].clone();
    let mut server = Server::start(world, &Launch::of(&volume, ranks))?;
    let ready = server.until_ready().await?;
    server.ensure_how(MAPPED, ranks)?;
    let tokens = world.compare(&server.tokens().await?, 0, ranks).await?;
    let serving = node.serving("model")?;
    Ok(format!("{tokens} tokens equal; volume served as {serving}; ready after {:.0} s", ready.as_secs_f64()))
}

/// Brings both models to a node, as volumes of their names.
pub(crate) fn mount_both(world: &World, node: &Node) -> Result<[PathBuf; 2]> {
    world.proxy.limit(NO_LIMIT);
    let mount = |at: usize| -> Result<PathBuf> {
        let name = world.models[at].file_name().context("a model's directory has a name")?;
        node.mount_source(SOURCES[at], &name.to_string_lossy(), &["--mode", "bind"])
    };
    Ok([mount(0)?, mount(1)?])
}

async fn killed(world: &World) -> Result<String> {
    world.right(0, 1).await?;
    let mut node = world.node()?;
    let (before, whole) = (world.proxy.bytes(), world.weight_bytes()?);
    let mut server = opened(world, &node, 1).await?;
    while world.proxy.bytes() - before < whole / 2 {
        ensure!(!server.has_loaded(), "it had loaded everything before half of the bytes came");
        sleep(Duration::from_millis(5)).await;
    }
    node.kill_agent()?;
    let share = (world.proxy.bytes() - before) * 100 / whole;
    sleep(AWAY).await;
    ensure!(!server.has_loaded(), "it had loaded everything before another agent came");
    node.start_agent()?;
    let ready = server.until_ready().await?;
    let tokens = world.compare(&server.tokens().await?, 0, 1).await?;
    Ok(format!(
        "{tokens} tokens equal; killed after {share} % of the bytes, {} s without an agent; ready after {:.0} s",
        AWAY.as_secs(),
        ready.as_secs_f64()
    ))
}

/// The model's directory has no weights; they are elsewhere. Then they come once more, and then another model's.
async fn source_and_reload(world: &World) -> Result<String> {
    let node = world.node()?;
    let [volume, other] = mount_both(world, &node)?;
    let bare = world.bare(&node)?;
    let launch = Launch { extra: Some(json!({ "source": volume })), ..Launch::of(&bare, 1) };
    load_again(world, &launch, &other, MAPPED).await
}

/// Loads, then once more in place, and then the other model in place.
pub(crate) async fn load_again(
    world: &World,
    launch: &Launch<'_>,
    other: &Path,
    how: &str,
) -> Result<String> {
    world.right(0, 1).await?;
    let mut server = Server::start(world, launch)?;
    server.until_ready().await?;
    world.compare(&server.tokens().await?, 0, 1).await.context("loaded first")?;
    server.sleep_and_wake().await?;
    server.reload(None).await?;
    world.compare(&server.tokens().await?, 0, 1).await.context("loaded once more")?;
    server.reload(Some(other)).await?;
    let tokens = server.tokens().await?;
    server.ensure_how(how, 3)?;
    let slept = if server.said().contains("sleep mode is not supported") {
        "ignored by vLLM on a CPU"
    } else {
        "done"
    };
    drop(server);
    let count = world.compare(&tokens, 1, 1).await.context("loaded from another volume")?;
    Ok(format!(
        "{count} tokens equal each time, {how}; sleep of level 2 is {slept}; reloaded in place, then from another volume"
    ))
}

/// A server that was told nonsense ends, and says in one line what to write.
async fn mistake(world: &World) -> Result<String> {
    let extra = Some(json!({ "sauce": 1 }));
    let launch = Launch { extra, ..Launch::of(&world.models[0], 1) };
    let mut server = Server::start(world, &launch)?;
    ensure!(!server.until_ended().await?, "it was content with a key that there is not");
    let said = server.said();
    let line =
        said.lines().find(|line| line.contains("has no key 'sauce'")).context("it does not say why")?;
    let words = line.find("model_loader_extra_config").map_or(line, |at| &line[at..]);
    Ok(format!("refused: {words}"))
}

/// What `pretrained.py` says.
#[derive(Deserialize)]
struct Pretrained {
    tokens: Tokens,
    parameters: usize,
    in_files: usize,
    in_arenas: usize,
}

/// Where transformers finds a model, which is always a volume's directory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Loading,
    Complete,
    /// The agent has it in memory as well.
    Resident,
}

async fn transformers(world: &World, place: Place) -> Result<String> {
    let pretrained = async |model: &Path| -> Result<Pretrained> {
        let prompts = serde_json::to_string(&prompts())?;
        let said = script(
            &world.python,
            "pretrained.py",
            &[&model.to_string_lossy(), &prompts, &LENGTH.to_string()],
        )
        .await?;
        Ok(serde_json::from_str(said.lines().last().unwrap_or_default())?)
    };
    let right = pretrained(&world.models[0]).await?;
    let node = if place == Place::Resident { world.lending_node()? } else { world.node()? };
    let volume = if place == Place::Loading {
        world.proxy.limit(STREAM / 2);
        node.mount("model", &[])?
    } else {
        mount_both(world, &node)?[0].clone()
    };
    if place == Place::Loading {
        ensure!(node.state("model")? == "loading", "the volume is complete before it was read");
    }
    let beside = if place == Place::Resident {
        let bytes = lent::make_resident(world, &volume).await?;
        format!(", and none in the {:.0} MB that the agent has in memory", bytes as f64 / 1e6)
    } else {
        String::new()
    };
    let found = pretrained(&volume).await?;
    ensure!(
        found.tokens == right.tokens,
        "tokens {:?} are not those of the files, {:?}",
        found.tokens,
        right.tokens
    );
    let (all, in_files) = (found.parameters, found.in_files);
    ensure!(all == in_files, "of {all} parameters {in_files} lie in the volume's files");
    ensure!(found.in_arenas == 0, "{} parameters lie in memory that the agent lends", found.in_arenas);
    let count: usize = found.tokens.iter().map(Vec::len).sum();
    Ok(format!(
        "{count} tokens equal to those over the files; all {all} parameters lie in the volume's files{beside}"
    ))
}
