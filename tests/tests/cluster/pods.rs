//! Pods that name a model, in each of the ways there are, and read every byte right.

use std::time::Instant;

use weightd_harness::{ModelShape, require};

use crate::{
    models::Stored,
    world::{Scene, until, world},
    yaml::{FOREVER, IDLE, ONCE, Pod, claim, inline, volume_and_claim},
};

#[test]
fn an_inline_volume_is_read_right_while_it_loads_and_after() {
    let world = require!(world());
    let scene = Scene::new(&world, "inline");
    let stored = Stored::new(&world, "inline", &ModelShape::small());
    let sums = stored.aligned_sums(&world);
    world.proxy.limit(16 << 20);
    let volume = inline(&stored.source, &[("layout", "aligned"), ("wait", "started"), ("pin", "false")]);
    let created = Instant::now();
    scene.apply(
        &Pod { name: "early", script: FOREVER, sums: &sums, volume: volume.clone(), ..Pod::default() }.yaml(),
    );
    scene.until_phase("early", "Running");
    eprintln!("running {:?} after it was created, while the model loads", created.elapsed());
    let node = scene.kubectl("get pod early -o jsonpath={.spec.nodeName}");
    let node = world.nodes.iter().find(|known| known.name == node).unwrap();
    let state = String::from_utf8(world.weightctl(node, "mounts -o json").stdout).unwrap();
    assert!(state.contains("loading"), "it runs before its model is there: {state}");
    until("it has read all of it", || scene.kubectl("logs early").contains("round").then_some(()));
    world.proxy.limit(0);

    // Complete now: the second pod's volume is a bind, and there is one download for both.
    until("the model is complete", || {
        let state = String::from_utf8(world.weightctl(node, "mounts -o json").stdout).unwrap();
        state.contains("complete").then_some(())
    });
    let before = world.proxy.bytes();
    let created = Instant::now();
    scene.apply(
        &Pod { name: "late", node: Some(node), script: ONCE, sums: &sums, volume, ..Pod::default() }.yaml(),
    );
    scene.until_phase("late", "Succeeded");
    eprintln!("read to its end {:?} after it was created, from the store", created.elapsed());
    let listing = 64 << 10;
    assert!(world.proxy.bytes() - before < listing, "{} bytes came", world.proxy.bytes() - before);
    assert_eq!(scene.phase("early"), "Running", "{}", scene.kubectl("logs early"));
    let log = world.kubectl("-n weightd logs -l app.kubernetes.io/name=weightd -c agent --tail=-1");
    assert!(
        !log.contains("read-ahead could not be set"),
        "the agent's container cannot do all of its work: {log}"
    );
    scene.kubectl("delete pod early late");
    scene.until_nothing_is_mounted();
}

#[test]
fn a_static_volume_and_its_claim_are_read_right_by_many_and_by_a_part() {
    let world = require!(world());
    let scene = Scene::new(&world, "claims");
    let stored = Stored::new(&world, "claims", &ModelShape::tiny());
    let sums = stored.sums();
    scene.apply(&volume_and_claim("claims", "model", &stored.source));
    let mut pods = String::new();
    let names = ["first", "second", "third"];
    for (at, name) in names.into_iter().enumerate() {
        let node = Some(&world.nodes[at % world.nodes.len()]);
        pods +=
            &Pod { name, node, script: ONCE, sums: &sums, volume: claim("model"), ..Pod::default() }.yaml();
    }
    // One file of it, where the volume itself would be.
    let part = "config.json";
    let script = "echo \"$SUMS\" | sha256sum -c -s && ! touch /weights";
    let sum = sums.lines().find(|line| line.ends_with(part)).unwrap().replace(part, "/weights");
    pods +=
        &Pod { name: "part", script, sums: &sum, volume: claim("model"), sub_path: part, ..Pod::default() }
            .yaml();
    scene.apply(&pods);
    names.into_iter().chain(["part"]).for_each(|name| scene.until_phase(name, "Succeeded"));
    scene.kubectl("delete pod --all");
    scene.until_nothing_is_mounted();
    scene.kubectl("delete pvc model");
    world.kubectl("delete pv claims-model");
}

#[test]
fn a_volume_cannot_be_written_and_a_pods_mistake_is_named_in_its_events() {
    let world = require!(world());
    let scene = Scene::new(&world, "mistakes");
    let stored = Stored::new(&world, "mistakes", &ModelShape::tiny());
    let write = "! touch /weights/x && ! rm /weights/config.json && ! mount -o remount,rw /weights";
    let volume = inline(&stored.source, &[("layout", "original")]);
    scene.apply(&Pod { name: "writer", script: write, volume, ..Pod::default() }.yaml());
    for (name, source, attributes, told) in [
        ("unknown", stored.source.as_str(), &[("speed", "high")][..], "speed"),
        ("missing", "gs://models/nothing-here", &[], "gs://models/nothing-here"),
        ("local", "file:///etc", &[], "file:///etc"),
    ] {
        scene.apply(&Pod { name, script: IDLE, volume: inline(source, attributes), ..Pod::default() }.yaml());
        eprintln!("{name}: {}", scene.until_event(name, &["MountVolume.SetUp failed", told]));
    }
    scene.until_phase("writer", "Succeeded");
    scene.kubectl("delete pod --all");
    scene.until_nothing_is_mounted();
}

#[test]
fn pods_that_are_deleted_at_once_by_force_or_evicted_leave_nothing() {
    let world = require!(world());
    let scene = Scene::new(&world, "endings");
    let stored = Stored::new(&world, "endings", &ModelShape::small());
    let sums = stored.sums();
    world.proxy.limit(8 << 20);
    let volume = inline(&stored.source, &[("layout", "original")]);
    let mut pods = String::new();
    let names = ["deleted", "forced", "evicted", "stays"];
    for name in names {
        let node = Some(&world.nodes[0]);
        pods += &Pod { name, node, script: FOREVER, sums: &sums, volume: volume.clone(), ..Pod::default() }
            .yaml();
    }
    scene.apply(&pods);
    names.into_iter().for_each(|name| scene.until_phase(name, "Running"));
    scene.kubectl("delete pod deleted --wait=false");
    scene.kubectl("delete pod forced --force --grace-period=0");
    let path = "/api/v1/namespaces/endings/pods/evicted/eviction";
    let body = "{\"apiVersion\":\"policy/v1\",\"kind\":\"Eviction\",\"metadata\":{\"name\":\"evicted\",\"namespace\":\"endings\"}}";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), body).unwrap();
    world.kubectl(&format!("create --raw {path} -f {}", file.path().display()));
    until("one volume is left", || (world.mounted(&world.nodes[0]).len() == 1).then_some(()));
    world.proxy.limit(0);
    until("it reads on", || scene.kubectl("logs stays").contains("round").then_some(()));
    let gone = world.weightctl(&world.nodes[0], &format!("rm {}", stored.source));
    assert!(!gone.status.success(), "what a pod reads cannot be removed");
    scene.kubectl("delete pod stays");
    scene.until_nothing_is_mounted();
}
