//! What all pods share: a cluster with weightd on it, a bucket, and a model that vLLM takes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::time::sleep;
use weightd_benches::{Pages, SOURCE, run};
use weightd_harness::{
    BucketOptions, Shape,
    cluster::{
        Cluster,
        image::Image,
        install::{Settings, install, until_installed},
        runner::Wanted,
    },
    vllm_python,
};

use super::{
    spec::{Content, IMAGE, Way},
    timing::{self, Tokens},
};
use crate::world::{Bucket, World, wait};

/// What the keeper may hold: the model, and room for it to be another.
const RESIDENT_LIMIT: u64 = 3 << 30;
/// About 2 GB in five files.
const MODEL: [&str; 9] =
    ["0", "--layers", "16", "--hidden", "2048", "--intermediate", "8192", "--shard", "400MB"];
const PATIENCE: Duration = Duration::from_secs(120);

/// A cluster, ready for pods. All of it ends when dropped.
pub(super) struct Stage {
    pub(super) cluster: Cluster,
    pub(super) bucket: Bucket,
    model: PathBuf,
    content: Content,
    /// What every pod has to answer.
    right: OnceLock<Tokens>,
    /// As the machine had them.
    _pages: Pages,
}

impl Stage {
    /// Sets it up, and lets one pod start that is not measured: after that, what pods import is in the page cache.
    ///
    /// # Errors
    /// When something of it does not come up; `Unready` where this machine has not what it takes.
    pub(super) fn make(world: &World) -> Result<Self> {
        let content = Content::find(world)?;
        eprintln!("making a model for vLLM");
        let model = world.fresh("llama")?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("model-servers/model.py");
        run(Command::new(vllm_python()?).arg(script).arg(&model).args(MODEL).env("HF_HUB_OFFLINE", "1"))?;
        eprintln!("starting a cluster");
        let pages = Pages::set("never")?;
        let cluster = Cluster::start(&Wanted { nodes: 1, ..Wanted::default() })?;
        let (address, shape) = (Some(cluster.host()), Shape::like_a_bucket());
        let bucket = Bucket::start(&model, BucketOptions { address, shape, ..BucketOptions::default() })?;
        load_image(&cluster)?;
        let settings = Settings {
            bucket: bucket.endpoint().to_owned(),
            token_url: None,
            resident_limit: RESIDENT_LIMIT,
        };
        install(&cluster, &settings)?;
        let stage = Self { cluster, bucket, model, content, right: OnceLock::new(), _pages: pages };
        eprintln!("starting a pod that is not measured");
        wait(timing::run(&stage, Way::Local))?;
        Ok(stage)
    }

    /// Length of all files of the model in bytes.
    pub(super) fn file_bytes(&self) -> u64 {
        files(&self.model).map(|(_, bytes)| bytes).sum()
    }

    /// Fails unless a pod answered what the first one did.
    pub(super) fn check(&self, tokens: &Tokens) -> Result<()> {
        let right = self.right.get_or_init(|| tokens.clone());
        ensure!(tokens == right, "tokens {tokens:?} are not those of the model on the node, {right:?}");
        Ok(())
    }

    /// Asks for a pod.
    pub(super) fn apply(&self, way: Way) -> Result<()> {
        let pod = self.content.pod(way, &self.model, &self.bucket)?;
        self.cluster.give(&["apply", "-f", "-"], &pod.to_string())
    }

    /// Has the model in the page cache.
    pub(super) fn warm(&self) -> Result<()> {
        for (path, _) in files(&self.model) {
            std::io::copy(&mut fs::File::open(path)?, &mut std::io::sink())?;
        }
        Ok(())
    }

    /// Has the node forget the model, on its disk and in memory that outlives servers. Nobody may use it any more.
    pub(super) async fn forget(&self) -> Result<()> {
        let remove = ["exec", "daemonset/weightd", "-c", "agent", "--", "weightctl", "rm", SOURCE];
        self.weightd(&remove)?;
        self.weightd(&["delete", "pod", "--all", "--wait", "--grace-period=1"])?;
        let begun = Instant::now();
        // For a moment there are none, or not all.
        while let Err(error) = self.are_pods_ready() {
            if begun.elapsed() > PATIENCE {
                return Err(error.context("weightd does not come back"));
            }
            sleep(Duration::from_millis(500)).await;
        }
        until_installed(&self.cluster)
    }

    fn are_pods_ready(&self) -> Result<()> {
        let pods: Value = serde_json::from_str(&self.weightd(&["get", "pods", "-o", "json"])?)?;
        let pods = pods["items"].as_array().context("a list has items")?;
        let is_ready = |pod: &Value| {
            let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
            conditions.into_iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
        };
        ensure!(pods.len() == 2 && pods.iter().all(is_ready), "{} pods, not all ready", pods.len());
        Ok(())
    }

    /// What `kubectl` says in weightd's namespace.
    pub(super) fn weightd(&self, words: &[&str]) -> Result<String> {
        self.cluster.ask(&[&["--namespace", "weightd"], words].concat())
    }
}

/// The image has next to nothing in it, so that it is on the node at once.
fn load_image(cluster: &Cluster) -> Result<()> {
    let place = tempfile::tempdir_in(cluster.directory())?;
    let archive = place.path().join("image.tar");
    let links = ["bin", "sbin", "lib", "lib64"].into_iter();
    let image = links
        .fold(Image::new(IMAGE, &[]), |image, name| image.link(&format!("/{name}"), &format!("usr/{name}")));
    image.write(&archive)?;
    cluster.load(&archive)
}

/// Files of a directory, and their lengths in bytes.
fn files(directory: &Path) -> impl Iterator<Item = (PathBuf, u64)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| (entry.path(), entry.metadata().map_or(0, |metadata| metadata.len())))
}
