//! weightd on a cluster, installed as docs/KUBERNETES.md says: images, and the plain overlay with `kubectl apply -k`.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    Cluster,
    children::{output, until},
    image::{self, Image},
};
use crate::binary;

/// The tag of what is built here.
const TAG: &str = "test";
/// Its images, and the programs in each.
const IMAGES: [(&str, &[&str]); 4] = [
    ("weightd", &["weightd", "weightctl"]),
    ("weightd-csi", &["weightd-csi"]),
    ("weightd-keeper", &["weightd-keeper"]),
    ("weightctl", &["weightctl"]),
];
/// Public authorities, for whoever asks a real origin.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Memory that a keeper has beside tensors, in bytes.
const KEEPERS_OWN: u64 = 64 << 20;
/// Of tokens that pods have for the bucket.
const AUDIENCE: &str = "weightd.test";

/// What an installation of tests has on top of the plain overlay.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The bucket emulator, as pods reach it.
    pub bucket: String,
    /// Where pods' tokens are exchanged. Without it, pods ask as nobody in particular.
    pub token_url: Option<String>,
    /// Most bytes of tensors in memory that servers share; none by default.
    pub resident_limit: u64,
}

/// Builds images of the programs that Cargo has built, loads them, applies the plain overlay, and waits until all runs.
///
/// # Errors
/// When a program is refused or does not come up.
pub fn install(cluster: &Cluster, settings: &Settings) -> Result<()> {
    load_images(cluster)?;
    let place = tempfile::tempdir()?;
    fs::write(place.path().join("kustomization.yaml"), overlay(place.path(), settings)?)?;
    let configuration = fs::read_to_string(manifests().join("base/weightd.toml"))?;
    // The machine's disk is not the nodes' alone; that some of it must stay free is shown elsewhere.
    let mut configuration = configuration.replace("[store]\n", "[store]\nfloor = 0.0\n");
    // What a node's disks have, its pods may read; no other pod is asked for.
    configuration += "\n[tiers]\nask_origin = false\n";
    if let Some(token_url) = &settings.token_url {
        configuration += &format!(
            "\n[access]\nsts_endpoint = {token_url:?}\naudience = {AUDIENCE:?}\nprovider = \"//iam.test/providers/cluster\"\n"
        );
    }
    if settings.resident_limit > 0 {
        configuration += "\n[handoff]\nhuge_pages = true\n";
    }
    fs::write(place.path().join("weightd.toml"), configuration)?;
    output(cluster.kubectl().args(["apply", "--validate=strict", "-k"]).arg(place.path()))?;
    until_installed(cluster)
}

/// Waits until all of it runs the latest of what was applied.
///
/// # Errors
/// When it does not.
pub fn until_installed(cluster: &Cluster) -> Result<()> {
    let nodes = cluster.nodes()?.len();
    for name in ["weightd-keeper", "weightd"] {
        until(&format!("{name} is ready on every node"), || check_ready(cluster, name, nodes))?;
    }
    until("kubelets know the driver", || {
        let drivers = "jsonpath={.items[*].spec.drivers[*].name}";
        let known = cluster.ask(&["get", "csinodes", "-o", drivers])?;
        ensure!(known.matches("csi.weightd.io").count() == nodes, "known are {known}");
        Ok(())
    })
}

/// Where this checkout has its manifests.
pub fn manifests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/daemonset").canonicalize().unwrap_or_default()
}

fn load_images(cluster: &Cluster) -> Result<()> {
    let place = tempfile::tempdir_in(cluster.directory())?;
    for (name, programs) in IMAGES {
        let mut image = Image::new(&image_name(name), &[name]);
        for program in programs {
            let stripped = image::stripped(&binary(program), place.path())?;
            image = image.file(&format!("/usr/local/bin/{program}"), &stripped);
        }
        if Path::new(AUTHORITIES).exists() {
            image = image.file(AUTHORITIES, Path::new(AUTHORITIES));
        }
        let archive = place.path().join(format!("{name}.tar"));
        image.write(&archive)?;
        cluster.load(&archive)?;
    }
    Ok(())
}

fn check_ready(cluster: &Cluster, name: &str, nodes: usize) -> Result<()> {
    let get = ["--namespace", "weightd", "get", "daemonset", name, "-o", "json"];
    let set: Value = serde_json::from_str(&cluster.ask(&get)?)?;
    let status = &set["status"];
    let is_latest = status["observedGeneration"] == set["metadata"]["generation"];
    // A keeper is replaced by hand alone.
    let is_replaced = name == "weightd-keeper" || status["updatedNumberScheduled"] == nodes;
    ensure!(is_latest && is_replaced && status["numberReady"] == nodes, "{name} is {status}");
    Ok(())
}

fn overlay(place: &Path, settings: &Settings) -> Result<String> {
    let images: String = IMAGES
        .map(|(name, _)| format!("- {{name: {name}, newName: docker.io/library/{name}, newTag: {TAG}}}\n"))
        .concat();
    let tokens = settings.token_url.as_ref().map_or(String::new(), |_| {
        format!(
            "- target: {{kind: CSIDriver}}\n  patch: |-\n    - op: add\n      path: /spec/tokenRequests\n      \
             value: [{{audience: {AUDIENCE}, expirationSeconds: 3600}}]\n"
        )
    });
    let keeper = if settings.resident_limit > 0 { keeper(settings.resident_limit) } else { String::new() };
    Ok(format!(
        "resources:\n- {}\nimages:\n{images}configMapGenerator:\n\
         - {{name: weightd, namespace: weightd, behavior: merge, files: [weightd.toml]}}\npatches:\n{tokens}{keeper}\
         - target: {{kind: DaemonSet, name: weightd}}\n  patch: |-\n    - op: add\n      \
         path: /spec/template/spec/containers/0/env\n      \
         value: [{{name: STORAGE_EMULATOR_HOST, value: \"{}\"}}]\n",
        relative(place, &manifests().join("overlays/plain"))?.display(),
        settings.bucket
    ))
}

/// A keeper that may hold so many bytes of tensors, with what docs/KUBERNETES.md has it request.
fn keeper(resident_limit: u64) -> String {
    let memory = resident_limit + resident_limit / 100 + KEEPERS_OWN;
    let container = "/spec/template/spec/containers/0";
    format!(
        "- target: {{kind: DaemonSet, name: weightd-keeper}}\n  patch: |-\n    - op: add\n      path: {container}/args/-\n      \
         value: --resident-limit\n    - op: add\n      path: {container}/args/-\n      value: \"{resident_limit}\"\n    - op: replace\n      path: {container}/resources\n      \
         value: {{requests: {{cpu: 10m, memory: {memory}}}, limits: {{memory: {memory}}}}}\n"
    )
}

fn image_name(name: &str) -> String {
    format!("docker.io/library/{name}:{TAG}")
}

/// The path from one directory to another: kustomize takes no absolute ones.
///
/// # Errors
/// When a path is not there, or not absolute.
pub fn relative(from: &Path, to: &Path) -> Result<PathBuf> {
    let up = from.canonicalize()?.components().filter(|part| *part != Component::RootDir).count();
    let root: PathBuf = (0..up).map(|_| "..").collect();
    Ok(root.join(to.strip_prefix("/").context("it is an absolute path")?))
}
