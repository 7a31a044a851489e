//! Every manifest, as the API server itself sees it: unknown fields and wrong values are errors.

use std::{fs, path::PathBuf};

use tempfile::TempDir;
use weightd_harness::{
    cluster::{
        install::{manifests, relative},
        provisioner,
    },
    require,
};

use crate::world::{done, world};

/// Overlays that can be applied; the component for newer versions is not one of them.
const OVERLAYS: [&str; 3] = ["plain", "gke-local-ssd", "gke-hyperdisk-ml"];

#[test]
fn the_api_server_accepts_every_overlay_and_example() {
    let world = require!(world());
    let found = fs::read_dir(manifests().join("overlays")).unwrap().count();
    assert_eq!(found, OVERLAYS.len(), "each overlay is checked");
    for name in OVERLAYS {
        let path = manifests().join("overlays").join(name).display().to_string();
        world.kubectl(&format!("apply --dry-run=server --validate=strict -k {path}"));
    }
    let examples: Vec<PathBuf> =
        fs::read_dir(manifests().join("examples")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(examples.len() >= 5);
    for example in examples {
        world.kubectl(&format!("apply --dry-run=server --validate=strict -f {}", example.display()));
    }
}

#[test]
fn the_api_server_accepts_the_provisioner_in_the_version_that_is_tested() {
    let world = require!(world());
    let (_place, path) = with_component("provisioner");
    let rendered = world.kubectl(&format!("kustomize {path}"));
    let image = format!("image: {}:{}\n", provisioner::UPSTREAM, provisioner::VERSION);
    assert_eq!(rendered.matches(&image).count(), 1);
    world.kubectl(&format!("apply --dry-run=server --validate=strict -k {path}"));
}

/// A field of 1.35: where the API server knows it, it is accepted; where it does not, this and nothing else is why not.
#[test]
fn the_component_for_newer_versions_adds_one_field() {
    let world = require!(world());
    let (_place, path) = with_component("kubernetes-1.35");
    let rendered = world.kubectl(&format!("kustomize {path}"));
    assert_eq!(rendered.matches("serviceAccountTokenInSecrets: true").count(), 1);
    let applied = world.try_kubectl(&format!("apply --dry-run=server --validate=strict -k {path}"));
    if !applied.status.success() {
        let said = String::from_utf8_lossy(&applied.stderr).into_owned();
        let other: Vec<&str> = said
            .lines()
            .filter(|line| !line.contains("unknown field \"spec.serviceAccountTokenInSecrets\""))
            .collect();
        assert!(other.is_empty(), "{said}");
    }
}

/// The plain overlay with a component, and its path.
fn with_component(name: &str) -> (TempDir, String) {
    let place = tempfile::tempdir().unwrap();
    let at = |path: &str| relative(place.path(), &manifests().join(path)).unwrap().display().to_string();
    let (plain, component) = (at("overlays/plain"), at(&format!("components/{name}")));
    let overlay = format!("resources: [{plain}]\ncomponents: [{component}]\n");
    fs::write(place.path().join("kustomization.yaml"), overlay).unwrap();
    let path = place.path().display().to_string();
    (place, path)
}

#[test]
fn weightd_may_change_its_own_node_and_little_else() {
    let world = require!(world());
    let asked = |verb: &str, what: &str| {
        let answer = world.try_kubectl(&format!(
            "auth can-i {verb} {what} -n default --as=system:serviceaccount:weightd:weightd"
        ));
        String::from_utf8(answer.stdout).unwrap().trim() == "yes"
    };
    for (verb, what) in [
        ("get", "secrets"),
        ("get", "configmaps"),
        ("get", "pods"),
        ("update", "nodes"),
        ("delete", "nodes"),
        ("create", "serviceaccounts/token"),
    ] {
        assert!(!asked(verb, what), "{verb} {what}");
    }
    assert!(asked("patch", "nodes") && asked("patch", "nodes/status") && asked("create", "events"));
    let elsewhere = "auth can-i create events -n kube-system --as=system:serviceaccount:weightd:weightd";
    assert_eq!(world.try_kubectl(elsewhere).stdout, b"no\n", "events are told in two namespaces only");

    let node = &world.nodes[0].name;
    let pods = "-n weightd get pods -l app.kubernetes.io/name=weightd -o name --field-selector";
    let pod = world.kubectl(&format!("{pods} spec.nodeName={node}"));
    let pod = pod.trim().strip_prefix("pod/").unwrap();
    let bound = format!("--bound-object-kind=Pod --bound-object-name={pod}");
    let bound = world.kubectl(&format!("-n weightd create token weightd {bound}"));
    let loose = world.kubectl("-n weightd create token weightd");
    let patch = |node: &str, token: &str, of: &str, patch: &str| {
        world.try_kubectl(&format!("--token={token} patch node {node} --dry-run=server{of} -p {patch}"))
    };
    let condition = |kind: &str| {
        format!("{{\"status\":{{\"conditions\":[{{\"type\":\"{kind}\",\"status\":\"True\"}}]}}}}")
    };
    let status = " --subresource=status";
    // weightd does not need it; kubectl reads before it patches.
    world.kubectl("create clusterrole weightd-test-reader --verb=get --resource=nodes/status");
    world.kubectl(
        "create clusterrolebinding weightd-test-reader --clusterrole=weightd-test-reader --serviceaccount=weightd:weightd",
    );
    done(patch(node, &bound, status, &condition("WeightsReady")));
    let refused = |node: &str, token: &str, of: &str, with: &str, why: &str| {
        let refused = patch(node, token, of, with);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains(why), "{said}");
    };
    for (node, token) in [(&world.nodes[1].name, &bound), (node, &loose)] {
        refused(node, token, status, &condition("WeightsReady"), "only the node that its pod is on");
    }
    refused(node, &bound, status, &condition("Example"), "no condition but WeightsReady");
    let (labels, taints) =
        (r#"{"metadata":{"labels":{"a":"b"}}}"#, r#"{"spec":{"taints":[{"key":"a","effect":"NoExecute"}]}}"#);
    refused(node, &bound, "", labels, "neither labels");
    refused(node, &bound, "", taints, "adds none");
    world.kubectl("delete clusterrolebinding,clusterrole weightd-test-reader");
}
