//! The pod's own identity decides, also when every byte is on the node already.

use weightd_harness::{ModelShape, require};

use crate::{
    models::Stored,
    world::{Scene, world},
    yaml::{ONCE, Pod, inline},
};

#[test]
fn one_account_reads_a_cached_model_and_another_is_refused_by_name() {
    let world = require!(world());
    let (allowed, other) = (Scene::new(&world, "allowed"), Scene::new(&world, "other"));
    let stored = Stored::within(&world, "private", "identity", &ModelShape::tiny());
    let sums = stored.sums();
    world.guard.grant("system:serviceaccount:allowed:default", "private");
    let node = Some(&world.nodes[0]);
    let volume = inline(&stored.source, &[("layout", "original")]);
    let pod =
        |name| Pod { name, node, script: ONCE, sums: &sums, volume: volume.clone(), ..Pod::default() }.yaml();
    allowed.apply(&pod("first"));
    allowed.until_phase("first", "Succeeded");

    // It is on the node now, which is no matter: who may not read it does not.
    other.apply(&pod("refused"));
    let told =
        ["gs://private/identity", "403", "system:serviceaccount:other:default", "roles/storage.objectViewer"];
    eprintln!("{}", other.until_event("refused", &told));
    let before = world.proxy.bytes();
    allowed.apply(&pod("second"));
    allowed.until_phase("second", "Succeeded");
    assert!(world.proxy.bytes() - before < 64 << 10, "it came from the node");
    assert_eq!(other.phase("refused"), "Pending");
    let asked = world.guard.asked();
    assert!(asked.iter().any(|who| who.ends_with(":allowed:default")), "{asked:?}");

    // Granted after all: it starts by itself.
    world.guard.grant("system:serviceaccount:other:default", "private");
    other.until_phase("refused", "Succeeded");
    drop((allowed, other));
    Scene::new(&world, "after").until_nothing_is_mounted();
}
