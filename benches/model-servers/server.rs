//! `vllm serve`, as one would start it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use reqwest::Client;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use tokio::time::sleep;
use weightd_benches::{vllm, wait_until};

use crate::{
    memory::{self, Mapped},
    world::World,
};

/// How long a server may take to come up.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long it may take to end when it is told to.
const LEAVE: Duration = Duration::from_secs(20);
/// How many tokens are wanted for each prompt.
pub(crate) const LENGTH: usize = 24;

/// What a server answered: for each prompt the numbers of its tokens.
pub(crate) type Tokens = Vec<Vec<u64>>;

/// What is asked. Numbers, so that no tokenizer is between.
pub(crate) fn prompts() -> Vec<Vec<u64>> {
    (0..3).map(|prompt| std::iter::once(1).chain((0..8).map(|at| 10 + 7 * prompt + at)).collect()).collect()
}

/// How a server is started.
pub(crate) struct Launch<'a> {
    pub(crate) model: &'a Path,
    pub(crate) ranks: usize,
    pub(crate) format: &'a str,
    pub(crate) extra: Option<Value>,
    /// Where URIs are opened.
    pub(crate) socket: Option<PathBuf>,
}

impl<'a> Launch<'a> {
    /// On a directory, by the package `weightd`.
    pub(crate) fn of(model: &'a Path, ranks: usize) -> Self {
        Self { model, ranks, format: "weightd", extra: None, socket: None }
    }
}

/// A running server. It and all its processes end with the value.
pub(crate) struct Server {
    process: Child,
    address: String,
    log: PathBuf,
    started: Instant,
}

impl Server {
    pub(crate) fn start(world: &World, launch: &Launch<'_>) -> Result<Self> {
        let port = weightd_harness::unused_port()?;
        let log = world.work.join("vllm.log");
        let output = File::create(&log)?;
        let mut command = Command::new(&world.python);
        // The program by its interpreter: its first line names a path that was longer than some kernels take.
        command.arg(world.python.with_file_name("vllm")).arg("serve").arg(launch.model);
        command.args(["--served-model-name", "model", "--host", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["--load-format", launch.format, "--tensor-parallel-size", &launch.ranks.to_string()]);
        command.args(vllm::ARGUMENTS).envs(vllm::ENVIRONMENT);
        if let Some(extra) = &launch.extra {
            command.args(["--model-loader-extra-config", &extra.to_string()]);
        }
        for (name, value) in [
            // Offers sleep and reload over HTTP.
            ("VLLM_SERVER_DEV_MODE", "1"),
            // Ranks find each other on loopback, too.
            ("VLLM_HOST_IP", "127.0.0.1"),
            ("GLOO_SOCKET_IFNAME", "lo"),
        ] {
            command.env(name, value);
        }
        launch.socket.as_ref().map(|socket| command.env("WEIGHTD_HANDOFF_SOCKET", socket));
        if launch.ranks > 1 {
            // By itself vLLM gives each rank a NUMA node, and refuses where there are fewer. A core each will do.
            let cores: Vec<_> = (0..launch.ranks).map(|rank| rank.to_string()).collect();
            command.env("VLLM_CPU_OMP_THREADS_BIND", cores.join("|"));
        }
        // A group of its own, which ends as one.
        command.process_group(0).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let process = command.spawn().context("starting vllm serve")?;
        Ok(Self { process, address: format!("http://127.0.0.1:{port}"), log, started: Instant::now() })
    }

    /// Everything it has said so far.
    pub(crate) fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until it begins with its model.
    pub(crate) async fn until_loads(&mut self) -> Result<()> {
        self.until("begins to load", async |server| server.said().contains("Starting to load model")).await
    }

    /// Waits until it has opened its weights.
    pub(crate) async fn until_opened(&mut self) -> Result<()> {
        self.until("opens its weights", async |server| server.said().contains("] weightd: ")).await
    }

    /// Waits until it has loaded them, and looks at it meanwhile.
    pub(crate) async fn until_loaded(&mut self, mut look: impl FnMut(&Self)) -> Result<()> {
        self.until("loads its weights", async |server| {
            look(server);
            server.has_loaded()
        })
        .await
    }

    /// Whether it has loaded its weights.
    pub(crate) fn has_loaded(&self) -> bool {
        self.said().contains("Loading weights took")
    }

    /// How its tensors came, each time that it opened some: `shared memory`, say.
    pub(crate) fn how(&self) -> Vec<String> {
        let said = self.said();
        let opened = said.lines().filter(|line| line.contains("] weightd: ") && line.contains(" tensors, "));
        let how = opened.filter_map(|line| line.trim_end().strip_suffix(')')?.rsplit_once('('));
        how.map(|(_, how)| how.to_owned()).collect()
    }

    /// Fails unless all tensors came in one way, and were opened so many times.
    pub(crate) fn ensure_how(&self, how: &str, times: usize) -> Result<()> {
        let found = self.how();
        ensure!(
            found.len() == times && found.iter().all(|found| found == how),
            "tensors came by {found:?}, not {times} times by {how}"
        );
        Ok(())
    }

    /// Waits until it answers.
    pub(crate) async fn until_ready(&mut self) -> Result<Duration> {
        let client = Client::new();
        self.until("answers", async |server| {
            let health = client.get(format!("{}/health", server.address)).send().await;
            health.is_ok_and(|answer| answer.status().is_success())
        })
        .await?;
        Ok(self.started.elapsed())
    }

    /// Waits until it has ended by itself, and says whether it was content.
    pub(crate) async fn until_ended(&mut self) -> Result<bool> {
        while self.started.elapsed() < PATIENCE {
            if let Some(status) = self.process.try_wait()? {
                return Ok(status.success());
            }
            sleep(Duration::from_millis(100)).await;
        }
        bail!("vllm serve has not ended in {PATIENCE:?}")
    }

    async fn until(&mut self, what: &str, mut is_so: impl AsyncFnMut(&Self) -> bool) -> Result<()> {
        while !is_so(self).await {
            let ended = self.process.try_wait()?;
            ensure!(ended.is_none(), "vllm serve ended before it {what}: {}", self.trouble());
            ensure!(self.started.elapsed() < PATIENCE, "vllm serve is not so far that it {what}");
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// What is wrong, in its own words.
    fn trouble(&self) -> String {
        let said = self.said();
        // The first is the cause of the others.
        let error = said.lines().find(|line| line.contains("Error: "));
        error.or(said.lines().last()).unwrap_or("it said nothing").trim().to_owned()
    }

    /// Greedy tokens for all prompts.
    pub(crate) async fn tokens(&self) -> Result<Tokens> {
        let body = json!({
            "model": "model", "prompt": prompts(), "max_tokens": LENGTH, "temperature": 0, "ignore_eos": true,
            "return_token_ids": true,
        });
        let answer: Value = serde_json::from_str(&self.post("/v1/completions", &body).await?)?;
        let choices = answer["choices"].as_array().context("no choices in the answer")?;
        let ids = choices.iter().map(|choice| serde_json::from_value(choice["token_ids"].clone()));
        let tokens: Tokens = ids.collect::<Result<_, _>>().context("no token_ids in the answer")?;
        let is_whole = tokens.len() == prompts().len() && tokens.iter().all(|tokens| tokens.len() == LENGTH);
        ensure!(is_whole, "{LENGTH} tokens for each prompt were asked for, and these came: {tokens:?}");
        Ok(tokens)
    }

    /// Has it load its weights once more, from elsewhere if that is said.
    pub(crate) async fn reload(&self, path: Option<&Path>) -> Result<()> {
        let options = path.map_or(json!({}), |path| json!({ "weights_path": path }));
        self.post("/collective_rpc", &json!({ "method": "reload_weights", "kwargs": options })).await?;
        Ok(())
    }

    /// Lets it forget its weights, and come back for them.
    pub(crate) async fn sleep_and_wake(&self) -> Result<()> {
        self.post("/sleep?level=2", &json!({})).await?;
        self.post("/wake_up", &json!({})).await?;
        Ok(())
    }

    async fn post(&self, path: &str, body: &Value) -> Result<String> {
        let request = Client::new().post(format!("{}{path}", self.address));
        let request = request.header("content-type", "application/json").body(body.to_string());
        let answer = request.send().await.with_context(|| format!("asking {path}"))?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(status.is_success(), "{path} was answered with {status}: {text}");
        Ok(text)
    }

    /// What of some memory each of its processes has, where it has any.
    pub(crate) fn memory(&self, which: &impl Fn(&str) -> bool) -> BTreeMap<u32, Mapped> {
        memory::of_group(self.process.id(), which)
    }

    /// Stops all of it where it is, and lets it go on.
    pub(crate) fn hold(&self) -> Result<Held> {
        Held::new(self.group().context("it has not ended")?)
    }

    fn group(&self) -> Option<Pid> {
        i32::try_from(self.process.id()).ok().and_then(Pid::from_raw)
    }
}

/// A server that stands still as long as this is there.
pub(crate) struct Held(Pid);

impl Held {
    fn new(group: Pid) -> Result<Self> {
        kill_process_group(group, Signal::STOP).context("stopping vllm serve")?;
        Ok(Self(group))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Fails only when it has ended.
        let _ = kill_process_group(self.0, Signal::CONT);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(group) = self.group() else { return };
        // Each of these fails only when it has ended already.
        let _ = kill_process_group(group, Signal::TERM);
        wait_until(LEAVE, || !matches!(self.process.try_wait(), Ok(None)));
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.process.wait();
    }
}
