//! Agent, driver and kubelet fail and are rolled out while pods read: these notice nothing, and new ones start.

use weightd_harness::{
    ModelShape,
    cluster::{Node, install::until_installed},
    require,
};

use crate::{
    models::Stored,
    world::{Scene, World, until, world},
    yaml::{FOREVER, ONCE, Pod, inline},
};

/// What can happen to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    KilledAgent,
    KilledDriver,
    RestartedKubelet,
    WipedPlugins,
    Rollout,
}

impl Fault {
    pub(crate) const ALL: [Self; 5] =
        [Self::KilledAgent, Self::KilledDriver, Self::RestartedKubelet, Self::WipedPlugins, Self::Rollout];

    /// Lets it happen.
    pub(crate) fn strike(self, world: &World, node: &Node) {
        match self {
            Self::KilledAgent => drop(world.in_node(node, "pkill -KILL -x weightd")),
            Self::KilledDriver => drop(world.in_node(node, "pkill -KILL -x weightd-csi")),
            Self::RestartedKubelet => world.cluster.restart_kubelet(node).unwrap(),
            Self::WipedPlugins => drop(world.in_node(
                node,
                "rm -rf /var/lib/kubelet/plugins/csi.weightd.io /var/lib/kubelet/plugins_registry/csi.weightd.io*",
            )),
            Self::Rollout => drop(world.kubectl("-n weightd rollout restart daemonset/weightd")),
        }
    }
}

#[test]
fn pods_read_on_and_new_ones_start_whatever_fails() {
    let world = require!(world());
    let scene = Scene::new(&world, "faults");
    let node = &world.nodes[0];
    for (at, fault) in Fault::ALL.into_iter().enumerate() {
        let stored = Stored::new(&world, &format!("faults-{at}"), &ModelShape::small());
        let (sums, volume) = (stored.sums(), inline(&stored.source, &[("layout", "original")]));
        let pod = |name: &str, script: &str| {
            let pod =
                Pod { name, node: Some(node), script, sums: &sums, volume: volume.clone(), ..Pod::default() };
            scene.apply(&pod.yaml());
        };
        // Some seconds' worth: it happens while the model loads.
        world.proxy.limit(8 << 20);
        let (reader, new) = (format!("reader-{at}"), format!("new-{at}"));
        pod(&reader, FOREVER);
        scene.until_phase(&reader, "Running");
        fault.strike(&world, node);
        pod(&new, ONCE);
        world.proxy.limit(0);
        scene.until_phase(&new, "Succeeded");
        let rounds = || scene.kubectl(&format!("logs {reader}")).matches("round").count();
        let before = rounds();
        until("it reads on", || (rounds() > before + 1).then_some(()));
        assert_eq!(scene.phase(&reader), "Running", "{fault:?}");
        until_installed(&world.cluster).unwrap();
        scene.kubectl(&format!("delete pod {reader} {new}"));
        eprintln!("{fault:?}: nobody noticed");
    }
    scene.until_nothing_is_mounted();
}

#[test]
fn an_agent_that_hits_its_memory_limit_is_no_matter_to_its_readers() {
    let world = require!(world());
    let scene = Scene::new(&world, "memory");
    let node = &world.nodes[1];
    let stored = Stored::new(&world, "memory", &ModelShape::small());
    let sums = stored.sums();
    world.proxy.limit(4 << 20);
    let volume = inline(&stored.source, &[("layout", "original")]);
    scene.apply(
        &Pod { name: "reader", node: Some(node), script: FOREVER, sums: &sums, volume, ..Pod::default() }
            .yaml(),
    );
    scene.until_phase("reader", "Running");
    // Too little for an agent to live on: it is killed again and again until the limit is what it was.
    let limit = |amount: &str| {
        world.kubectl(&format!(
            "-n weightd set resources daemonset/weightd -c agent --limits=memory={amount} --requests=memory={amount}"
        ));
    };
    limit("8Mi");
    until("it is killed for its memory", || {
        let told = world.kubectl("-n weightd get pods -l app.kubernetes.io/name=weightd -o json");
        told.contains("OOMKilled").then_some(())
    });
    assert_eq!(scene.phase("reader"), "Running");
    limit("1Gi");
    world.kubectl(
        "-n weightd set resources daemonset/weightd -c agent --limits=memory=1Gi --requests=memory=512Mi",
    );
    world.proxy.limit(0);
    until_installed(&world.cluster).unwrap();
    let rounds = || scene.kubectl("logs reader").matches("round").count();
    let before = rounds();
    until("it reads on", || (rounds() > before + 1).then_some(()));
    scene.kubectl("delete pod reader");
    scene.until_nothing_is_mounted();
}
