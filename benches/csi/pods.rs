//! Pods of a real Kubernetes, with a model and without.

use std::{
    collections::BTreeMap,
    fs,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tokio::time::sleep;
use weightd_benches::{BUCKET, Bucket};
use weightd_harness::{
    Guard,
    cluster::{
        Cluster,
        image::BUSYBOX,
        install::{Settings, install},
        runner::Wanted,
    },
};

const PATIENCE: Duration = Duration::from_secs(120);

/// What a pod has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// No model: what Kubernetes takes by itself.
    Nothing,
    /// A model that the node has never heard of.
    Unknown,
    /// One that is complete on the node.
    Complete,
}

/// When a pod did what, in seconds from the call that asked for it.
#[derive(Debug)]
pub(crate) struct Times {
    pub(crate) runs: f64,
    /// It had the first byte of its model.
    pub(crate) first: Option<f64>,
    /// It had a byte from the middle of the model's last file.
    pub(crate) last: Option<f64>,
}

/// One pod of each kind.
pub(crate) type Round = BTreeMap<Kind, Times>;

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Nothing, Self::Unknown, Self::Complete];

    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Nothing => "a pod without a volume of weightd's",
            Self::Unknown => "with a model that the node has never heard of",
            Self::Complete => "with a model that is complete on the node",
        }
    }
}

/// Measures pods, one after the other.
pub(crate) async fn measure(bucket: &Bucket, rounds: usize) -> Result<Vec<Round>> {
    eprintln!("starting a cluster");
    let cluster = Cluster::start(&Wanted { nodes: 1, ..Wanted::default() })?;
    let guard = Guard::start_at(cluster.host(), &bucket.gcs.endpoint()).await?;
    guard.open(BUCKET);
    let settings = Settings { bucket: guard.url(), token_url: Some(guard.token_url()), resident_limit: 0 };
    install(&cluster, &settings)?;
    let mut measured = Vec::new();
    for round in 0..rounds {
        let name = format!("pods-{round}");
        bucket.gcs.place_directory(BUCKET, &name, &bucket.model.directory)?;
        let source = format!("gs://{BUCKET}/{name}");
        let mut times = Round::new();
        for kind in Kind::ALL {
            eprintln!("pods, round {}: {}", round + 1, kind.words());
            times.insert(kind, pod(&cluster, bucket, kind, &source).await?);
        }
        // The next round's node has not heard of it, and has its room.
        in_agent(&cluster, &format!("rm {source}"))?;
        measured.push(times);
    }
    Ok(measured)
}

/// One pod from its beginning to its end.
async fn pod(cluster: &Cluster, bucket: &Bucket, kind: Kind, source: &str) -> Result<Times> {
    // Weights come first among its files.
    let last = &bucket.model.files[bucket.model.shards.len() - 1];
    let middle = fs::metadata(bucket.model.directory.join(last))?.len() / 2;
    let yaml = yaml(kind, source, &bucket.model.files[0], last, middle);
    let asked = uptime()?;
    cluster.give(&["create", "-f", "-"], &yaml)?;
    let begun = Instant::now();
    let lines = if kind == Kind::Nothing { 1 } else { 3 };
    let said = loop {
        let output = cluster.kubectl().args(["logs", "timed"]).stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if said.lines().count() >= lines {
            break said;
        }
        if begun.elapsed() > PATIENCE {
            let events = cluster.ask(&["get", "events", "-o", "wide"])?;
            bail!("the pod says {said:?} after {PATIENCE:?}: {events}");
        }
        sleep(Duration::from_millis(200)).await;
    };
    let after = |line: usize| {
        let time = said.lines().nth(line).and_then(|line| line.split(' ').next()?.parse::<f64>().ok());
        time.map(|time| time - asked)
    };
    if kind == Kind::Unknown {
        // Kept by its pod until it is complete: the next pod finds it so.
        in_agent(cluster, &format!("prefetch {source}"))?;
    }
    cluster.ask(&["delete", "pod", "timed", "--wait", "--grace-period=1"])?;
    Ok(Times { runs: after(0).context("it ran")?, first: after(1), last: after(2) })
}

/// Says the time at its first line, and after each of two bytes.
fn yaml(kind: Kind, source: &str, first: &str, last: &str, middle: u64) -> String {
    let now = "read up idle < /proc/uptime; echo $up";
    let byte = |file: &str, at: u64| {
        format!("dd if=/weights/{file} bs=1 count=1 skip={at} of=/dev/null 2>/dev/null")
    };
    let (script, mounts, volumes) = match kind {
        Kind::Nothing => (now.to_owned(), "[]".to_owned(), "[]".to_owned()),
        Kind::Unknown | Kind::Complete => (
            format!("{now}; {}; {now}; {}; {now}", byte(first, 0), byte(last, middle)),
            "[{name: weights, mountPath: /weights, readOnly: true}]".to_owned(),
            format!(
                "[{{name: weights, csi: {{driver: csi.weightd.io, volumeAttributes: {{source: {source:?}}}}}}}]"
            ),
        ),
    };
    let script = format!("{script}; trap 'exit 0' TERM; while :; do sleep 0.1; done");
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: timed}}\nspec:\n  restartPolicy: Never\n  containers:\n  \
         - name: timed\n    image: {BUSYBOX}\n    command: [/bin/sh, -c, {script:?}]\n    volumeMounts: {mounts}\n  \
         volumes: {volumes}\n"
    )
}

/// Seconds since the machine started, which pods see alike.
fn uptime() -> Result<f64> {
    let text = fs::read_to_string("/proc/uptime")?;
    Ok(text.split(' ').next().unwrap_or_default().parse()?)
}

/// Runs `weightctl` in the agent's container.
fn in_agent(cluster: &Cluster, line: &str) -> Result<()> {
    let agent = ["-n", "weightd", "exec", "daemonset/weightd", "-c", "agent", "--", "weightctl"];
    let mut words: Vec<&str> = agent.to_vec();
    words.extend(line.split(' '));
    cluster.ask(&words).map(drop)
}
