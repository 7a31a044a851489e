//! Pods of many models come and go on all nodes, while everything fails at random.

use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use weightd_harness::{ModelShape, cluster::install::until_installed, require};

use crate::{
    faults::Fault,
    models::Stored,
    world::{Scene, until, until_equal, world},
    yaml::{FOREVER, ONCE, Pod, inline},
};

/// How many models.
const MODELS: usize = 20;
/// How many pods at once.
const PODS: usize = 6;

/// A pod that is there.
struct Living {
    name: String,
    forever: bool,
}

#[test]
fn pods_of_many_models_come_and_go_while_everything_fails() {
    let world = require!(world());
    let scene = Scene::new(&world, "chaos");
    let seconds = std::env::var("WEIGHTD_TEST_CHAOS_SECONDS").map_or(120, |text| text.parse().unwrap());
    let seed = std::env::var("WEIGHTD_TEST_CHAOS_SEED")
        .map_or_else(|_| rand::random(), |text| text.parse().unwrap());
    eprintln!("{seconds} seconds with the seed {seed} (WEIGHTD_TEST_CHAOS_SECONDS, WEIGHTD_TEST_CHAOS_SEED)");
    let mut random = StdRng::seed_from_u64(seed);
    let models: Vec<(Stored, String)> = (0..MODELS)
        .map(|at| {
            let shape = ModelShape { seed: 100 + at as u64, ..ModelShape::tiny() };
            let stored = Stored::new(&world, &format!("chaos-{at}"), &shape);
            let sums = stored.sums();
            (stored, sums)
        })
        .collect();
    world.proxy.limit(32 << 20);

    let started = Instant::now();
    let (mut living, mut made, mut struck) = (Vec::<Living>::new(), 0, 0);
    while started.elapsed() < Duration::from_secs(seconds) {
        if living.len() < PODS {
            let (stored, sums) = &models[random.random_range(0..MODELS)];
            let node = &world.nodes[random.random_range(0..world.nodes.len())];
            let forever = random.random_bool(0.5);
            let (name, script) = (format!("pod-{made}"), if forever { FOREVER } else { ONCE });
            let volume = inline(&stored.source, &[("layout", "original")]);
            scene
                .apply(&Pod { name: &name, node: Some(node), script, sums, volume, ..Pod::default() }.yaml());
            living.push(Living { name, forever });
            made += 1;
        }
        if random.random_bool(0.25) {
            let fault = Fault::ALL[random.random_range(0..Fault::ALL.len())];
            let node = &world.nodes[random.random_range(0..world.nodes.len())];
            fault.strike(&world, node);
            struck += 1;
        }
        living.retain(|pod| !ended(&scene, pod, &mut random));
        std::thread::sleep(Duration::from_millis(300));
    }
    eprintln!("{made} pods, {struck} faults");
    assert!(made > 5 && struck > 5, "that is no chaos");

    until_installed(&world.cluster).unwrap();
    for pod in &living {
        scene.until_phase(&pod.name, if pod.forever { "Running" } else { "Succeeded" });
    }
    scene.kubectl("delete pod --all --timeout=120s");
    scene.until_nothing_is_mounted();
    nothing_is_left(&scene);
}

/// Whether a pod is gone: because it was done, or because its time had come.
fn ended(scene: &Scene<'_>, pod: &Living, random: &mut StdRng) -> bool {
    let phase = scene.phase(&pod.name);
    assert_ne!(phase, "Failed", "{}: {}", pod.name, scene.kubectl(&format!("logs {}", pod.name)));
    let how = match phase.as_str() {
        "Succeeded" => "--wait=false",
        _ if random.random_bool(0.1) => "--force --grace-period=0",
        "Running" if random.random_bool(0.2) => "--wait=false",
        _ => return false,
    };
    scene.kubectl(&format!("delete pod {} {how}", pod.name));
    true
}

/// No mount, no use and no half of a blob that nobody wants.
fn nothing_is_left(scene: &Scene<'_>) {
    for node in &scene.world.nodes {
        until_equal("no volume is known to the agent", &0, || {
            let output = scene.world.weightctl(node, "mounts -o json").stdout;
            let answer: serde_json::Value = serde_json::from_slice(&output).unwrap_or_default();
            answer["volumes"].as_array().map_or(usize::MAX, Vec::len)
        });
        // Nothing is in use, so all of it can go; what then is left has leaked.
        let list = scene.world.weightctl(node, "ls -o json").stdout;
        let list: serde_json::Value = serde_json::from_slice(&list).unwrap();
        for snapshot in list.as_array().unwrap() {
            let id = snapshot["id"].as_str().unwrap().to_owned();
            until("it can be removed", || {
                scene.world.weightctl(node, &format!("rm {id}")).status.success().then_some(())
            });
        }
        scene.world.weightctl(node, "gc --partials");
        let left = scene.world.in_node(node, "find /var/lib/weightd -type f -size +64k ! -name \"index*\"");
        assert_eq!(left, "", "{} has files that belong to nothing", node.name);
    }
}
