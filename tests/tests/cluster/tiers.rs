//! Weights that are on a node before a pod asks: on a boot disk where GKE mounts it, and in a directory that nodes share.

use std::path::Path;

use weightd_harness::{ModelShape, cluster::Node, require};

use crate::{
    models::Stored,
    world::{Scene, World, done, until, weightctl, world},
    yaml::{ONCE, Pod, inline},
};

/// Where GKE mounts secondary boot disks.
const DISKS: &str = "/mnt/disks/gke-secondary-disks";

/// A disk that is mounted in a node; gone with its value.
struct Disk<'w> {
    world: &'w World,
    node: &'w Node,
    target: String,
}

impl<'w> Disk<'w> {
    fn mount(world: &'w World, node: &'w Node, name: &str, options: &str, what: &Path) -> Self {
        let target = format!("{DISKS}/{name}");
        let line =
            format!("mkdir -p {target} && mount {options} {} {target} && echo mounted", what.display());
        assert_eq!(world.in_node(node, &line).trim(), "mounted");
        Self { world, node, target }
    }

    fn until_found(&self) {
        until("the agent has found the disk", || {
            let status = self.world.weightctl(self.node, "status -o json");
            String::from_utf8_lossy(&status.stdout).contains(&self.target).then_some(())
        });
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        self.world.in_node(self.node, &format!("umount -l {0}; rmdir {0}", self.target));
    }
}

/// A pod on a node reads every byte right, and the origin is not asked for one.
#[track_caller]
fn assert_read_without_origin(scene: &Scene<'_>, node: &Node, stored: &Stored) {
    let (sums, before) = (stored.sums(), scene.world.proxy.bytes());
    let volume = inline(&stored.source, &[("layout", "original")]);
    let reader =
        Pod { name: "reader", node: Some(node), script: ONCE, sums: &sums, volume, ..Pod::default() };
    scene.apply(&reader.yaml());
    scene.until_phase("reader", "Succeeded");
    assert_eq!(scene.world.proxy.bytes(), before, "the origin was asked");
}

#[test]
fn a_pod_starts_from_its_nodes_boot_disk_and_nobody_asks_the_origin() {
    let world = require!(world());
    let scene = Scene::new(&world, "bootdisk");
    let stored = Stored::new(&world, "bootdisk", &ModelShape::small());
    let place = tempfile::tempdir_in(world.cluster.directory()).unwrap();
    let image = place.path().join("disk.raw");
    let mut build = weightctl(&world);
    build.args(["image", "build", "--layout", "original", "--model", &stored.source, "--output"]).arg(&image);
    done(build.output().unwrap());
    let node = &world.nodes[0];
    let disk = Disk::mount(&world, node, "gke-weights-disk", "-t ext4 -o loop,ro", &image);
    disk.until_found();
    assert_read_without_origin(&scene, node, &stored);
    scene.kubectl("delete pod reader");
    scene.until_nothing_is_mounted();
    drop(disk);
}

#[test]
fn a_job_fills_a_shared_directory_and_another_node_uses_it() {
    let world = require!(world());
    let scene = Scene::new(&world, "hydration");
    let stored = Stored::new(&world, "hydration", &ModelShape::small());
    let shared = tempfile::tempdir_in(world.cluster.directory()).unwrap();
    let job = format!(
        "apiVersion: batch/v1\nkind: Job\nmetadata: {{name: hydrate}}\nspec:\n  template:\n    spec:\n      \
         restartPolicy: OnFailure\n      nodeSelector: {{kubernetes.io/hostname: {}}}\n      containers:\n      \
         - name: export\n        image: docker.io/library/weightctl:test\n        \
         args: [export, --layout, original, --to, /weights, {:?}]\n        \
         env: [{{name: STORAGE_EMULATOR_HOST, value: {:?}}}]\n        \
         securityContext: {{runAsUser: 0, readOnlyRootFilesystem: true}}\n        \
         volumeMounts: [{{name: weights, mountPath: /weights}}]\n      \
         volumes: [{{name: weights, hostPath: {{path: {:?}}}}}]\n",
        world.nodes[0].name,
        stored.source,
        world.proxy.url(),
        shared.path().display().to_string(),
    );
    scene.apply(&job);
    scene.kubectl("wait --for=condition=complete --timeout=120s job/hydrate");
    let node = &world.nodes[1];
    let disk = Disk::mount(&world, node, "shared", "--bind -o ro", shared.path());
    disk.until_found();
    assert_read_without_origin(&scene, node, &stored);
    scene.kubectl("delete pod,job --all");
    scene.until_nothing_is_mounted();
    drop(disk);
}
