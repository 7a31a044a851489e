//! The cases: each is a place that a server is given, and what happens meanwhile.
//!
//! Two places are still to come, and each is one more function here: weights that are resident in the agent's shared memory,
//! and a `gs://` origin that the loader names to the agent (`--model-loader-extra-config '{"source": "gs://..."}'`). Both need
//! an agent that hands memory over.

use std::{collections::BTreeMap, fs, future::Future, path::Path, pin::Pin, time::Duration};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::json;
use tokio::{process::Command, time::sleep};
use weightd_benches::Node;

use crate::{
    server::{LENGTH, Launch, Server, Tokens, prompts},
    world::{SOURCES, World, output, script},
};

/// So slow that a server that starts finds next to nothing.
const TRICKLE: u64 = 500_000;
/// What is left after that takes some seconds.
const STREAM: u64 = 15_000_000;
const NO_LIMIT: u64 = 0;
/// Longer than anything that is killed is away.
const AWAY: Duration = Duration::from_secs(2);

/// What a case came to, in words.
type Outcome<'a> = Pin<Box<dyn Future<Output = Result<String>> + 'a>>;
type Case = fn(&World) -> Outcome<'_>;

pub(crate) fn all() -> [(&'static str, Case); 10] {
    [
        ("stand-in", |world| Box::pin(stand_in(world))),
        ("loading, 1 rank", |world| Box::pin(loading(world, 1))),
        ("loading, 2 ranks", |world| Box::pin(loading(world, 2))),
        ("complete, 1 rank", |world| Box::pin(complete(world, 1))),
        ("complete, 2 ranks", |world| Box::pin(complete(world, 2))),
        ("agent killed while loading", |world| Box::pin(killed(world))),
        ("source, sleep and reload", |world| Box::pin(source_and_reload(world))),
        ("mistake", |world| Box::pin(mistake(world))),
        ("transformers, loading", |world| Box::pin(transformers(world, true))),
        ("transformers, complete", |world| Box::pin(transformers(world, false))),
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
    let mut server = Server::start(world, &Launch { model: &volume, ranks, format: "weightd", extra: None })?;
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
    let mut touched: BTreeMap<u32, u64> = BTreeMap::new();
    server
        .until_loaded(|server| {
            for (process, bytes) in server.touched(&node.target("model")) {
                let most = touched.entry(process).or_default();
                *most = bytes.max(*most);
            }
        })
        .await?;
    let ready = server.until_ready().await?;
    let tokens = world.compare(&server.tokens().await?, 0, ranks).await?;
    let bytes = tensor_bytes(&world.models[0])?;
    let shares: Vec<_> = touched.values().map(|touched| format!("{} %", touched * 100 / bytes)).collect();
    Ok(format!(
        "{tokens} tokens equal; loading when it was opened; ready after {:.0} s; just before the end each rank had touched {}",
        ready.as_secs_f64(),
        shares.join(" and ")
    ))
}

async fn complete(world: &World, ranks: usize) -> Result<String> {
    world.right(0, ranks).await?;
    let node = whole(world)?;
    let volume = node.target("model");
    let mut server = Server::start(world, &Launch { model: &volume, ranks, format: "weightd", extra: None })?;
    let ready = server.until_ready().await?;
    server.until_opened().await?;
    let tokens = world.compare(&server.tokens().await?, 0, ranks).await?;
    let serving = node.serving("model")?;
    Ok(format!("{tokens} tokens equal; volume served as {serving}; ready after {:.0} s", ready.as_secs_f64()))
}

/// A node that has both models, as volumes of their names.
fn whole(world: &World) -> Result<Node> {
    world.proxy.limit(NO_LIMIT);
    let node = world.node()?;
    for (source, model) in SOURCES.iter().zip(&world.models) {
        let name = model.file_name().context("a model's directory has a name")?.to_string_lossy();
        node.mount_source(source, &name, &["--mode", "bind"])?;
    }
    Ok(node)
}

async fn killed(world: &World) -> Result<String> {
    world.right(0, 1).await?;
    let mut node = world.node()?;
    let (before, whole) = (world.proxy.bytes(), tensor_bytes(&world.models[0])?);
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
    world.right(0, 1).await?;
    let node = whole(world)?;
    let [volume, other] = ["model", "other"].map(|name| node.target(name));
    let bare = node.target("bare");
    fs::create_dir(&bare)?;
    for entry in fs::read_dir(&world.models[0])? {
        let path = entry?.path();
        if !path.to_string_lossy().contains(".safetensors") {
            fs::copy(&path, bare.join(path.file_name().context("a file has a name")?))?;
        }
    }
    let extra = Some(json!({ "source": volume }));
    let mut server = Server::start(world, &Launch { model: &bare, ranks: 1, format: "weightd", extra })?;
    server.until_ready().await?;
    world.compare(&server.tokens().await?, 0, 1).await.context("from the source")?;
    server.sleep_and_wake().await?;
    server.reload(None).await?;
    world.compare(&server.tokens().await?, 0, 1).await.context("loaded once more")?;
    server.reload(Some(&other)).await?;
    let tokens = server.tokens().await?;
    let slept = if server.said().contains("sleep mode is not supported") {
        "ignored by vLLM on a CPU"
    } else {
        "done"
    };
    drop(server);
    let count = world.compare(&tokens, 1, 1).await.context("loaded from another volume")?;
    Ok(format!(
        "{count} tokens equal each time; sleep of level 2 is {slept}; reloaded in place, then from another volume"
    ))
}

/// A server that was told nonsense ends, and says in one line what to write.
async fn mistake(world: &World) -> Result<String> {
    let extra = Some(json!({ "sauce": 1 }));
    let launch = Launch { model: &world.models[0], ranks: 1, format: "weightd", extra };
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
}

async fn transformers(world: &World, is_loading: bool) -> Result<String> {
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
    let node = if is_loading { world.node()? } else { whole(world)? };
    if is_loading {
        world.proxy.limit(STREAM / 2);
        node.mount("model", &[])?;
        ensure!(node.state("model")? == "loading", "the volume is complete before it was read");
    }
    let volume = node.target("model");
    let found = pretrained(&volume).await?;
    ensure!(
        found.tokens == right.tokens,
        "tokens {:?} are not those of the files, {:?}",
        found.tokens,
        right.tokens
    );
    let (all, in_files) = (found.parameters, found.in_files);
    ensure!(all == in_files, "of {all} parameters {in_files} lie in the volume's files");
    let beside = if right.tokens == world.right(0, 1).await? { ", and those of vLLM" } else { "" };
    let count: usize = found.tokens.iter().map(Vec::len).sum();
    Ok(format!(
        "{count} tokens equal to those over the files{beside}; all {all} parameters lie in the volume's files"
    ))
}

/// Bytes of a model's files of weights.
fn tensor_bytes(model: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(model)? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|extension| extension == "safetensors") {
            bytes += entry.metadata()?.len();
        }
    }
    Ok(bytes)
}
