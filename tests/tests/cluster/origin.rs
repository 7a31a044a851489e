//! Pods that start while the bucket cannot be reached or refuses.

use weightd_harness::{Fault, ModelShape, require};

use crate::{
    models::Stored,
    world::{Scene, world},
    yaml::{ONCE, Pod, inline},
};

#[test]
fn a_pod_starts_by_itself_when_the_origin_is_back() {
    let world = require!(world());
    let scene = Scene::new(&world, "origin");
    let stored = Stored::new(&world, "origin", &ModelShape::tiny());
    let sums = stored.sums();
    for (name, code) in [("unreachable", 503), ("refused", 403)] {
        world.proxy.inject("models", u32::MAX, Fault::Status { code, retry_after: None });
        let volume = inline(&stored.source, &[("layout", "original")]);
        scene.apply(&Pod { name, script: ONCE, sums: &sums, volume, ..Pod::default() }.yaml());
        let said =
            scene.until_event(name, &["MountVolume.SetUp failed", "gs://models/origin", &code.to_string()]);
        eprintln!("{said}");
        assert_eq!(scene.phase(name), "Pending");
        world.mend_origin();
        scene.until_phase(name, "Succeeded");
        scene.kubectl(&format!("delete pod {name}"));
    }
    scene.until_nothing_is_mounted();
}
