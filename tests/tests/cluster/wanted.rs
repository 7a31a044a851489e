//! Models that a ConfigMap wants on a node, and what the node says of them.

use weightd_harness::{ModelShape, require};

use crate::{
    models::Stored,
    world::{Scene, World, until, world},
};

const TAINT: &str = "startup-taint.cluster-autoscaler.kubernetes.io/weightd-not-ready";

#[test]
fn a_node_brings_what_a_config_map_wants_and_says_how_far_it_is() {
    let world = require!(world());
    let scene = Scene::new(&world, "wanted");
    let stored = Stored::new(&world, "wanted", &ModelShape::tiny());
    let [first, second] = &world.nodes[..] else { panic!("there are two nodes") };
    list(
        &world,
        &format!("{} {}", entry(&stored.source, &first.name), entry("gs://models/none", &second.name)),
    );
    let said = condition(&world, &first.name, "True");
    eprintln!("{said}");
    let said = condition(&world, &second.name, "False");
    assert!(said.contains("gs://models/none"), "{said}");
    until("the model is kept", || wanted(&world, first, &stored.source));
    assert_eq!(wanted(&world, second, &stored.source), None, "it is wanted elsewhere");

    // Nobody reads it: it is there before a pod asks, and goes on being there when nobody wants it any more.
    world.kubectl("-n weightd delete configmap wanted");
    until("the model is let go", || wanted(&world, first, &stored.source).is_none().then_some(()));
    condition(&world, &second.name, "True");
    drop(scene);
}

#[test]
fn the_startup_taint_of_a_node_goes() {
    let world = require!(world());
    let node = &world.nodes[0].name;
    world.kubectl(&format!("taint node {node} {TAINT}=true:NoSchedule example.com/other=x:PreferNoSchedule"));
    let taints = || world.kubectl(&format!("get node {node} -o jsonpath={{.spec.taints[*].key}}"));
    until("the startup taint is gone", || (!taints().contains(TAINT)).then_some(()));
    assert_eq!(taints(), "example.com/other");
    world.kubectl(&format!("taint node {node} example.com/other-"));
}

fn entry(source: &str, node: &str) -> String {
    format!(
        "{{source: {source:?}, required: true, layout: original, nodeSelector: {{kubernetes.io/hostname: {node}}}}},"
    )
}

fn list(world: &World, entries: &str) {
    let yaml = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: wanted, labels: {{weightd.io/models: \"true\"}}}}\ndata:\n  \
         models.yaml: |\n    models: [{entries}]\n"
    );
    world.apply("weightd", &yaml);
}

/// Waits until a node's condition has that status; gives its message.
fn condition(world: &World, node: &str, status: &str) -> String {
    until(&format!("WeightsReady of {node} is {status}"), || {
        let node = world.json(&format!("get node {node}"));
        let all = node["status"]["conditions"].as_array()?;
        let ours = all.iter().find(|one| one["type"] == "WeightsReady")?;
        (ours["status"] == status).then(|| ours["message"].to_string())
    })
}

/// Whether a node keeps a source's complete snapshot because it is wanted.
fn wanted(world: &World, node: &weightd_harness::cluster::Node, source: &str) -> Option<()> {
    let answer: serde_json::Value =
        serde_json::from_slice(&world.weightctl(node, "ls -o json").stdout).ok()?;
    let ours = answer.as_array()?.iter().find(|one| one["source"] == source)?.clone();
    (ours["wanted"] == true && ours["state"] == "complete").then_some(())
}
