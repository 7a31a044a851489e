//! Installing weightd as docs/KUBERNETES.md says: images, and the plain overlay with `kubectl apply -k`.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

use weightd_harness::{
    binary,
    cluster::image::{self, Image},
};

use crate::world::{World, until};

/// The tag of what is built here.
const TAG: &str = "test";

/// Builds the three images from the programs that `cargo test` has built, and loads them.
pub(crate) fn images(world: &World) {
    let place = tempfile::tempdir_in(world.cluster.directory()).unwrap();
    for (name, programs) in [
        ("weightd", &["weightd", "weightctl"][..]),
        ("weightd-csi", &["weightd-csi"]),
        ("weightd-keeper", &["weightd-keeper"]),
    ] {
        let mut image = Image::new(&format!("docker.io/library/{name}:{TAG}"), &[name]);
        for program in programs {
            let stripped = image::stripped(&binary(program), place.path()).unwrap();
            image = image.file(&format!("/usr/local/bin/{program}"), &stripped);
        }
        let authorities = Path::new("/etc/ssl/certs/ca-certificates.crt");
        if authorities.exists() {
            image = image.file(&authorities.display().to_string(), authorities);
        }
        let archive = place.path().join(format!("{name}.tar"));
        image.write(&archive).unwrap();
        world.cluster.load(&archive).unwrap();
    }
}

/// Of tokens that pods have for the bucket.
const AUDIENCE: &str = "weightd.test";

/// The plain overlay, with what only a test needs on top: which images, where the bucket is, and who knows pods there.
pub(crate) fn apply(world: &World) {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("kustomization.yaml"), overlay(place.path(), &world.proxy.url())).unwrap();
    let plain = fs::read_to_string(manifests().join("base/weightd.toml")).unwrap();
    let access = format!(
        "[access]\nsts_endpoint = {:?}\naudience = {AUDIENCE:?}\nprovider = \"//iam.test/providers/cluster\"\n",
        world.guard.token_url()
    );
    fs::write(place.path().join("weightd.toml"), plain + "\n" + &access).unwrap();
    let directory = place.path().display().to_string();
    world.kubectl(&format!("apply --validate=strict -k {directory}"));
    until_installed(world);
}

/// Waits until all of it runs the latest of what was applied.
pub(crate) fn until_installed(world: &World) {
    for name in ["weightd-keeper", "weightd"] {
        until(&format!("{name} is ready on every node"), || is_ready(world, name).then_some(()));
    }
    until("kubelets know the driver", || {
        let known = world.kubectl("get csinodes -o jsonpath={.items[*].spec.drivers[*].name}");
        (known.matches("csi.weightd.io").count() == world.nodes.len()).then_some(())
    });
}

fn is_ready(world: &World, name: &str) -> bool {
    let set = world.json(&format!("-n weightd get daemonset {name}"));
    let status = &set["status"];
    let is_latest = status["observedGeneration"] == set["metadata"]["generation"];
    // A keeper is replaced by hand alone.
    let is_replaced = name == "weightd-keeper" || status["updatedNumberScheduled"] == world.nodes.len();
    is_latest && is_replaced && status["numberReady"] == world.nodes.len()
}

fn overlay(place: &Path, bucket: &str) -> String {
    let images: String = ["weightd", "weightd-csi", "weightd-keeper"]
        .map(|name| format!("- {{name: {name}, newName: docker.io/library/{name}, newTag: {TAG}}}\n"))
        .concat();
    format!(
        "resources:\n- {}\nimages:\n{images}configMapGenerator:\n\
         - {{name: weightd, namespace: weightd, behavior: merge, files: [weightd.toml]}}\npatches:\n\
         - target: {{kind: CSIDriver}}\n  patch: |-\n    - op: add\n      path: /spec/tokenRequests\n      \
         value: [{{audience: {AUDIENCE}, expirationSeconds: 3600}}]\n- target: {{kind: DaemonSet, name: weightd}}\n  patch: |-\n    \
         - op: add\n      path: /spec/template/spec/containers/0/env\n      \
         value: [{{name: STORAGE_EMULATOR_HOST, value: \"{bucket}\"}}]\n",
        relative(place, &manifests().join("overlays/plain")).display()
    )
}

/// Where this checkout has its manifests.
pub(crate) fn manifests() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap().join("deploy/daemonset")
}

/// Kustomize takes no absolute paths.
fn relative(from: &Path, to: &Path) -> PathBuf {
    let up = from.canonicalize().unwrap().components().filter(|part| *part != Component::RootDir).count();
    let root: PathBuf = (0..up).map(|_| "..").collect();
    root.join(to.strip_prefix("/").unwrap())
}
