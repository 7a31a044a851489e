//! One pod, and when it did what.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use reqwest::Client;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use weightd_benches::{busy, cpu_of};

use super::{
    spec::{POD, PORT, SERVER, Way},
    stage::Stage,
};
use crate::contest::{Phase, Run};

/// How long a pod may take.
const PATIENCE: Duration = Duration::from_secs(240);
/// Between two tries to have a token.
const LOOK: Duration = Duration::from_millis(20);
/// Between two looks at how the pod is: each costs as much as a hundred of the others.
const GLANCE: Duration = Duration::from_secs(5);
/// How many tokens must be right.
const LENGTH: usize = 8;

/// Numbers of the tokens that a server answered.
pub(super) type Tokens = Vec<u64>;

/// Starts a pod, waits for its first token, checks it, and takes it away.
pub(super) async fn run(stage: &Stage, way: Way) -> Result<Run> {
    if way == Way::Local {
        stage.warm()?;
    }
    let run =
        timeout(PATIENCE, one(stage, way)).await.unwrap_or_else(|_| bail!("no token after {PATIENCE:?}"));
    let run = run.map_err(|error| error.context(trouble(stage)));
    let gone =
        stage.cluster.ask(&["delete", "pod", POD, "--ignore-not-found", "--wait", "--grace-period=10"]);
    // What was wrong with the pod says more than what is wrong with taking it away.
    let run = run?;
    gone?;
    if way == Way::Own {
        stage.forget().await?;
    }
    Ok(run)
}

async fn one(stage: &Stage, way: Way) -> Result<Run> {
    let client = Client::builder().no_proxy().build()?;
    let bucket_cpu = || cpu_of(stage.bucket.pid());
    let (sent, published) = (stage.bucket.sent()?, published(stage, &client).await?);
    let before = busy()?.saturating_sub(bucket_cpu()?);
    let asked = now();
    stage.apply(way)?;
    let address = address(stage).await?;
    // Volumes are there before a pod has an address, and are published again later.
    let published = self::published(stage, &client).await? - published;
    let url = format!("http://{address}:{PORT}/v1/completions");
    first_token(stage, &client, &url).await?;
    let answered = now();
    let cpu = busy()?.saturating_sub(bucket_cpu()?).saturating_sub(before);
    let origin_bytes = stage.bucket.sent()? - sent;
    stage.check(&tokens(&client, &url, LENGTH).await?)?;
    Ok(Run {
        wall: answered - asked,
        cpu: cpu.as_secs_f64(),
        origin_bytes,
        phases: phases(stage, way, asked, published, answered)?,
        ..Run::default()
    })
}

/// What took how long, from what its containers said.
fn phases(stage: &Stage, way: Way, asked: f64, published: f64, answered: f64) -> Result<Vec<Phase>> {
    let server = said(stage, SERVER)?;
    let begun = first(&server, "")?;
    let (imported, loaded) =
        (first(&server, "Starting to load model")?, first(&server, "Loading weights took")?);
    if way == Way::Own {
        first(&server, "(shared memory)").context("tensors were not lent")?;
    }
    // A volume of CSI comes before the containers, all else after the first of them.
    let (image, volume) = match way.bringer() {
        None => (begun - asked - published, published),
        Some(bringer) => {
            let bringing = first(&said(stage, bringer)?, "")?;
            (bringing - asked, begun - bringing)
        }
    };
    let phases = [
        ("image", image),
        ("volume", volume),
        ("import", imported - begun),
        ("weights", loaded - imported),
        ("rest", answered - loaded),
    ];
    Ok(phases.map(|(name, seconds)| Phase { name, seconds }).to_vec())
}

/// What a container said, with the time of each line.
fn said(stage: &Stage, container: &str) -> Result<String> {
    stage.cluster.ask(&["logs", POD, "--container", container, "--timestamps"])
}

/// When something was said first, in seconds since 1970.
fn first(said: &str, what: &str) -> Result<f64> {
    let line =
        said.lines().find(|line| line.contains(what)).with_context(|| format!("nothing says {what:?}"))?;
    let (time, _) = line.split_once(' ').context("a line has a time")?;
    Ok(time.parse::<Timestamp>()?.as_duration().as_secs_f64())
}

fn now() -> f64 {
    Timestamp::now().as_duration().as_secs_f64()
}

/// Waits for the pod's address.
async fn address(stage: &Stage) -> Result<String> {
    loop {
        let address = stage.cluster.ask(&["get", "pod", POD, "-o", "jsonpath={.status.podIP}"])?;
        if !address.is_empty() {
            return Ok(address);
        }
        sleep(Duration::from_millis(500)).await;
    }
}

/// Asks until there is a token.
async fn first_token(stage: &Stage, client: &Client, url: &str) -> Result<()> {
    let mut glanced = Instant::now();
    while tokens(client, url, 1).await.is_err() {
        if glanced.elapsed() > GLANCE {
            let phase = stage.cluster.ask(&["get", "pod", POD, "-o", "jsonpath={.status.phase}"])?;
            ensure!(phase != "Failed" && phase != "Succeeded", "the pod has ended: {phase}");
            glanced = Instant::now();
        }
        sleep(LOOK).await;
    }
    Ok(())
}

/// The most probable tokens that follow some. Numbers, so that no tokenizer is between.
async fn tokens(client: &Client, url: &str, length: usize) -> Result<Tokens> {
    let prompt: Vec<u32> = std::iter::once(1).chain(10..18).collect();
    let body = json!({
        "model": "model", "prompt": prompt, "max_tokens": length, "temperature": 0, "ignore_eos": true, "return_token_ids": true,
    });
    let answer = client.post(url).json(&body).send().await?.error_for_status()?;
    let answer: Value = answer.json().await?;
    let tokens: Tokens = serde_json::from_value(answer["choices"][0]["token_ids"].clone())?;
    ensure!(tokens.len() == length, "{length} tokens were asked for, and these came: {tokens:?}");
    Ok(tokens)
}

/// How many seconds the node's driver has spent on making volumes so far.
async fn published(stage: &Stage, client: &Client) -> Result<f64> {
    let driver =
        ["get", "pod", "-l", "app.kubernetes.io/name=weightd", "-o", "jsonpath={.items[0].status.podIP}"];
    let address = stage.weightd(&driver)?;
    let metrics = client.get(format!("http://{address}:9465/metrics")).send().await?.text().await?;
    let name = "weightd_csi_call_duration_seconds_sum{method=\"NodePublishVolume\"} ";
    let sum = metrics.lines().find_map(|line| line.strip_prefix(name));
    Ok(sum.map_or(Ok(0.0), str::parse)?)
}

/// Why a pod has come no further, as far as it can be seen.
fn trouble(stage: &Stage) -> String {
    let ask = |words: &[&str]| stage.cluster.ask(words).unwrap_or_else(|error| format!("{error:#}"));
    let events = ask(&[
        "get",
        "events",
        "--field-selector",
        &format!("involvedObject.name={POD}"),
        "--sort-by=.lastTimestamp",
    ]);
    let said = ask(&["logs", POD, "--all-containers", "--prefix", "--tail=15"]);
    let lines: Vec<&str> = events.lines().collect();
    format!("the pod's events: {}\nand it says: {said}", lines[lines.len().saturating_sub(5)..].join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_its_time() {
        let said =
            "2026-11-27T20:00:00.5Z begins\n2026-11-27T21:00:01.25+01:00 INFO Starting to load model x\n";
        let between = first(said, "Starting to load model").unwrap() - first(said, "").unwrap();
        assert!((between - 0.75).abs() < 1e-6, "{between}");
        assert!(first(said, "Loading weights took").is_err());
    }
}
