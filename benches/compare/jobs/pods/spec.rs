//! What pods are made of: the same server in each, and what brings the model before it.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weightd_benches::{BUCKET, Gcsfuse, SOURCE, vllm};

use crate::{
    peers::gcloud,
    world::{Bucket, World, text},
};

/// The image of all containers: links to what of the node is mounted.
pub(super) const IMAGE: &str = "docker.io/library/weightd-bench:test";
/// Every pod, one at a time.
pub(super) const POD: &str = "timed";
/// Its container with the model server.
pub(super) const SERVER: &str = "server";
/// Where the model server answers.
pub(super) const PORT: u16 = 8000;
/// The first that a container says.
const BEGINS: &str = "echo begins; exec \"$@\"";
/// Where it is set how far a FUSE mount reads ahead.
const BDI: &str = "/sys/devices/virtual/bdi";

/// How weightd is told to.
pub(super) const OWN: &str = "inline CSI volume with `resident: \"true\"`, `--load-format weightd`, a keeper that may hold the model, \
                              `huge_pages = true`";
/// How gcsfuse is told to, beside its cache.
pub(super) const GCSFUSE: &str = "in a native sidecar with a startup probe; vLLM's own loader";
/// How a download goes on.
pub(super) const DOWNLOAD: &str = "into an `emptyDir`; vLLM's own loader";

/// How a pod has its model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// It is a directory of the node.
    Local,
    /// A volume of weightd's.
    Own,
    /// A bucket that a container of the pod mounts.
    Gcsfuse,
    /// A download before the server starts.
    Download,
}

/// Directories of this machine that make up what an image would hold.
pub(super) struct Content {
    python: PathBuf,
    package: PathBuf,
    directories: Vec<PathBuf>,
    /// What vLLM learns of a model's class, which takes it ten seconds the first time.
    cache: PathBuf,
}

impl Way {
    /// The container that begins before the server and brings the model.
    pub(super) fn bringer(self) -> Option<&'static str> {
        match self {
            Self::Local | Self::Own => None,
            Self::Gcsfuse => Some("gcsfuse"),
            Self::Download => Some("download"),
        }
    }
}

impl Content {
    pub(super) fn find(world: &World) -> Result<Self> {
        let python = weightd_harness::vllm_python()?;
        let asked = Command::new(&python)
            .args(["-c", "import sys; print(sys.prefix); print(sys.base_prefix)"])
            .output()?;
        ensure!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
        let package = world.python().package().to_owned();
        let mut directories = BTreeSet::from([PathBuf::from("/usr"), package.clone()]);
        directories.extend(String::from_utf8(asked.stdout)?.lines().map(PathBuf::from));
        if let Ok(program) = Gcsfuse::program() {
            directories.extend(program.parent().map(Path::to_owned));
        }
        // What lies in another is there with it.
        let is_top = |one: &PathBuf| !directories.iter().any(|other| other != one && one.starts_with(other));
        let directories = directories.iter().filter(|one| is_top(one)).cloned().collect();
        Ok(Self { python, package, directories, cache: world.fresh("vllm-cache")? })
    }

    /// A pod whose server has its model in one way.
    pub(super) fn pod(&self, way: Way, model: &Path, bucket: &Bucket) -> Result<Value> {
        let mut volumes = vec![
            json!({"name": "tmp", "emptyDir": {}}),
            json!({"name": "shm", "emptyDir": {"medium": "Memory"}}),
            json!({"name": "vllm-cache", "hostPath": {"path": self.cache, "type": "Directory"}}),
        ];
        for (at, directory) in self.directories.iter().enumerate() {
            volumes.push(json!({"name": format!("content-{at}"), "hostPath": {"path": directory, "type": "Directory"}}));
        }
        volumes.push(match way {
            Way::Local => json!({"name": "weights", "hostPath": {"path": model, "type": "Directory"}}),
            Way::Own => json!({"name": "weights", "csi": {
                "driver": "csi.weightd.io", "readOnly": true, "volumeAttributes": {"source": SOURCE, "resident": "true"},
            }}),
            Way::Gcsfuse | Way::Download => json!({"name": "weights", "emptyDir": {}}),
        });
        let mut before = Vec::new();
        match way {
            Way::Gcsfuse => {
                volumes.push(json!({"name": "cache", "emptyDir": {}}));
                // The pod's own /sys is read-only, even for the privileged.
                volumes.push(json!({"name": "read-ahead", "hostPath": {"path": BDI, "type": "Directory"}}));
                before.push(self.gcsfuse(bucket)?);
            }
            Way::Download => before.push(self.download(bucket)),
            Way::Local | Way::Own => {}
        }
        Ok(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": POD},
            "spec": {
                "restartPolicy": "Never",
                // The cluster has no DNS. This says so at once, and programs that look names up do not wait for the network's.
                "dnsPolicy": "None", "dnsConfig": {"nameservers": ["127.0.0.1"]},
                "initContainers": before, "containers": [self.server(way)?], "volumes": volumes,
            },
        }))
    }

    fn server(&self, way: Way) -> Result<Value> {
        let model = if matches!(way, Way::Gcsfuse | Way::Download) { "/weights/model" } else { "/weights" };
        let format = if way == Way::Own { "weightd" } else { "auto" };
        let port = PORT.to_string();
        let program = self.python.with_file_name("vllm");
        let command = [
            "/bin/sh",
            "-c",
            BEGINS,
            "sh",
            text(&self.python)?,
            text(&program)?,
            "serve",
            model,
            "--served-model-name",
            "model",
            "--port",
            &port,
            "--load-format",
            format,
        ];
        let command = [&command[..], &vllm::ARGUMENTS].concat();
        let own = [("PYTHONPATH", text(&self.package)?), ("VLLM_CACHE_ROOT", "/vllm-cache")];
        let variables =
            own.into_iter().chain(vllm::ENVIRONMENT).map(|(name, value)| (name, value.to_owned()));
        let propagation = if way == Way::Gcsfuse { "HostToContainer" } else { "None" };
        let weights = json!({"name": "weights", "mountPath": "/weights", "readOnly": true, "mountPropagation": propagation});
        let cache = json!({"name": "vllm-cache", "mountPath": "/vllm-cache"});
        Ok(json!({
            "name": SERVER, "image": IMAGE, "command": command, "volumeMounts": self.mounts([weights, cache]),
            "env": environment(variables),
        }))
    }

    fn gcsfuse(&self, bucket: &Bucket) -> Result<Value> {
        let program = Gcsfuse::program()?;
        // Told to end it leaves its mount to the node, which then cannot remove the pod: unmounting ends it.
        let script = format!(
            "echo \"$CONFIG\" >/tmp/config.yaml\n\
             {} --foreground --config-file /tmp/config.yaml -o ro -o allow_other {BUCKET} /weights &\n\
             trap 'umount --lazy /weights; exit 0' TERM\n\
             until test -e /weights/model/config.json; do sleep 0.1; done\n\
             echo {} >{BDI}/$(mountpoint -d /weights)/read_ahead_kb && touch /tmp/mounted\n\
             wait",
            text(&program)?,
            Gcsfuse::READ_AHEAD_KIB
        );
        let mounts = [
            json!({"name": "weights", "mountPath": "/weights", "mountPropagation": "Bidirectional"}),
            json!({"name": "cache", "mountPath": "/cache"}),
            json!({"name": "read-ahead", "mountPath": BDI}),
        ];
        Ok(json!({
            "name": Way::Gcsfuse.bringer(), "image": IMAGE, "restartPolicy": "Always", "volumeMounts": self.mounts(mounts),
            "command": ["/bin/sh", "-c", BEGINS, "sh", "/bin/sh", "-c", script],
            "env": environment([("CONFIG", Gcsfuse::config(bucket.endpoint(), Some(Path::new("/cache"))))]),
            "securityContext": {"privileged": true},
            "startupProbe": {
                "exec": {"command": ["/usr/bin/test", "-e", "/tmp/mounted"]}, "periodSeconds": 1, "failureThreshold": 60,
            },
        }))
    }

    fn download(&self, bucket: &Bucket) -> Value {
        let weights = json!({"name": "weights", "mountPath": "/weights"});
        json!({
            "name": Way::Download.bringer(), "image": IMAGE, "volumeMounts": self.mounts([weights]),
            "command": ["/bin/sh", "-c", BEGINS, "sh", "gcloud", "storage", "cp", "-r", SOURCE, "/weights/"],
            "env": environment(gcloud::environment(bucket)),
        })
    }

    /// Mounts of a container: what an image would hold, and these.
    fn mounts<const N: usize>(&self, more: [Value; N]) -> Vec<Value> {
        let content = self.directories.iter().enumerate().map(|(at, directory)| {
            json!({"name": format!("content-{at}"), "mountPath": directory, "readOnly": true})
        });
        let scratch =
            [json!({"name": "tmp", "mountPath": "/tmp"}), json!({"name": "shm", "mountPath": "/dev/shm"})];
        content.chain(scratch).chain(more).collect()
    }
}

/// Variables of a container, with those that every program wants where there are no users.
fn environment(more: impl IntoIterator<Item = (&'static str, String)>) -> Vec<Value> {
    let own = [("HOME", "/tmp"), ("USER", "root")].map(|(name, value)| (name, value.to_owned()));
    own.into_iter().chain(more).map(|(name, value)| json!({"name": name, "value": value})).collect()
}
