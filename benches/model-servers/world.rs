//! What all cases share: two models, their bucket behind a proxy that can be slow, and the tokens that are right.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tokio::{process::Command, sync::Mutex};
use weightd_benches::{BUCKET, Node};
use weightd_harness::{FakeGcs, FaultProxy, mounts, vllm_python};

use crate::server::{Launch, Server, Tokens};

/// What weightd calls them.
pub(crate) const SOURCES: [&str; 2] = ["gs://bench/model", "gs://bench/other"];

/// More than both models together.
const MEMORY: u64 = 1 << 30;

/// Both models, and where they are.
pub(crate) struct World {
    /// The interpreter that has vLLM and the package `weightd`.
    pub(crate) python: PathBuf,
    /// Which versions of them.
    pub(crate) versions: String,
    /// The bucket, as fast as it is asked to be.
    pub(crate) proxy: FaultProxy,
    /// The directories of the models as they were published.
    pub(crate) models: [PathBuf; 2],
    pub(crate) work: PathBuf,
    /// Tokens of vLLM's own loader, for a model and a number of ranks. Each takes a server, so it is asked once.
    right: Mutex<Vec<(usize, usize, Tokens)>>,
    _gcs: FakeGcs,
    _made: TempDir,
}

impl World {
    pub(crate) async fn make(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let work = directory.canonicalize()?;
        mounts::remove_below(&work);
        let python = vllm_python()?;
        let gcs = FakeGcs::start().await?;
        gcs.create_bucket(BUCKET).await?;
        let made = tempfile::tempdir_in(&work)?;
        let models = SOURCES.map(|source| made.path().join(source.rsplit('/').next().unwrap_or_default()));
        for (seed, model) in models.iter().enumerate() {
            script(&python, "model.py", &[&model.to_string_lossy(), &seed.to_string()]).await?;
            let name = model.file_name().context("a model's directory has a name")?.to_string_lossy();
            gcs.place_directory(BUCKET, &name, model)?;
        }
        let proxy = FaultProxy::start(&gcs.endpoint()).await?;
        let versions = "import importlib.metadata as packages; names = 'vllm', 'transformers', 'torch', 'safetensors', 'weightd'\n\
                        print(', '.join(f'{name} {packages.version(name)}' for name in names))";
        let versions = output(Command::new(&python).args(["-c", versions])).await?.trim().to_owned();
        Ok(Self { python, versions, proxy, models, work, right: Mutex::default(), _gcs: gcs, _made: made })
    }

    /// An agent and its keeper, with an empty store and no memory for tensors: servers map files.
    pub(crate) fn node(&self) -> Result<Node> {
        Node::start(&self.empty()?, &self.proxy.url(), "")
    }

    /// The same with memory for tensors, which servers borrow.
    pub(crate) fn lending_node(&self) -> Result<Node> {
        Node::start_with_memory(&self.empty()?, &self.proxy.url(), "", MEMORY)
    }

    /// The place of the one node that there is.
    fn empty(&self) -> Result<PathBuf> {
        let place = self.work.join("node");
        if place.exists() {
            mounts::remove_below(&place);
            fs::remove_dir_all(&place)?;
        }
        Ok(place)
    }

    /// A directory with all of the first model but its weights.
    pub(crate) fn bare(&self, node: &Node) -> Result<PathBuf> {
        let bare = node.target("bare");
        fs::create_dir(&bare)?;
        for entry in fs::read_dir(&self.models[0])? {
            let path = entry?.path();
            if !path.to_string_lossy().contains(".safetensors") {
                fs::copy(&path, bare.join(path.file_name().context("a file has a name")?))?;
            }
        }
        Ok(bare)
    }

    /// How many bytes of weights the first model has.
    pub(crate) fn weight_bytes(&self) -> Result<u64> {
        let mut bytes = 0;
        for entry in fs::read_dir(&self.models[0])? {
            let entry = entry?;
            if entry.path().extension().is_some_and(|extension| extension == "safetensors") {
                bytes += entry.metadata()?.len();
            }
        }
        Ok(bytes)
    }

    /// The tokens that are right for a model.
    pub(crate) async fn right(&self, model: usize, ranks: usize) -> Result<Tokens> {
        let mut right = self.right.lock().await;
        if let Some((.., tokens)) = right.iter().find(|(known, with, _)| (*known, *with) == (model, ranks)) {
            return Ok(tokens.clone());
        }
        let launch = Launch { format: "auto", ..Launch::of(&self.models[model], ranks) };
        let mut server = Server::start(self, &launch)?;
        server.until_ready().await.context("vLLM's own loader")?;
        let tokens = server.tokens().await?;
        right.push((model, ranks, tokens.clone()));
        Ok(tokens)
    }

    /// Says what differs.
    pub(crate) async fn compare(&self, found: &Tokens, model: usize, ranks: usize) -> Result<usize> {
        let right = self.right(model, ranks).await?;
        ensure!(*found == right, "tokens {found:?} are not those of vLLM's own loader, {right:?}");
        Ok(found.iter().map(Vec::len).sum())
    }
}

/// What a script beside this file says on stdout.
pub(crate) async fn script(python: &Path, name: &str, arguments: &[&str]) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("model-servers").join(name);
    output(Command::new(python).arg(path).args(arguments).env("HF_HUB_OFFLINE", "1")).await
}

/// What a program says on stdout. It ends when nobody waits for it any more.
pub(crate) async fn output(command: &mut Command) -> Result<String> {
    let output =
        command.kill_on_drop(true).output().await.with_context(|| format!("starting {command:?}"))?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{command:?} failed: {}",
        words.trim().lines().last().unwrap_or_default()
    );
    Ok(String::from_utf8(output.stdout)?)
}
