//! Claims through a StorageClass: the component `provisioner`, on top of what is installed.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::{NamedTempFile, TempDir};
use weightd_harness::{
    ModelShape, Unready,
    cluster::{
        install::{manifests, relative, until_installed},
        provisioner,
    },
    require,
};

use crate::{
    faults::Fault,
    models::Stored,
    world::{Scene, World, until, until_equal, world},
    yaml::{ONCE, Pod, claim, claim_of, class},
};

const ACCOUNT: &str = "system:serviceaccount:weightd:weightd-provisioner";
/// What everybody asks for who only reads.
const READERS: &str = "ReadOnlyMany";

type Parameters<'a> = &'a [(&'a str, &'a str)];

/// The component, as long as this lives; and the classes of a test.
struct Provisioner<'a> {
    world: &'a World,
    overlay: TempDir,
}

impl<'a> Provisioner<'a> {
    fn install(world: &'a World) -> Result<Self, Unready> {
        provisioner::load(&world.cluster)?;
        let overlay = tempfile::tempdir().unwrap();
        let component = relative(overlay.path(), &manifests().join("components/provisioner")).unwrap();
        let (from, name, tag) = (provisioner::UPSTREAM, provisioner::IMAGE, provisioner::TAG);
        let text = format!(
            "components: [{}]\nimages:\n- {{name: {from}, newName: {name}, newTag: {tag}}}\n",
            component.display()
        );
        fs::write(overlay.path().join("kustomization.yaml"), text).unwrap();
        let installed = Self { world, overlay };
        world.kubectl(&format!("apply --validate=strict -k {}", installed.path()));
        installed.until_ready();
        Ok(installed)
    }

    fn until_ready(&self) {
        self.world.kubectl("-n weightd rollout status deployment/weightd-provisioner --timeout=180s");
    }

    /// Says so, if it wanted to do what it may not.
    #[track_caller]
    fn was_not_refused(&self) {
        let log =
            self.world.kubectl("-n weightd logs -l app.kubernetes.io/name=weightd-provisioner --tail=-1");
        assert!(log.contains("csi.weightd.io") && !log.contains("forbidden"), "{log}");
    }

    fn path(&self) -> String {
        self.overlay.path().display().to_string()
    }

    /// Its pods, and the nodes that they are on.
    fn pods(&self) -> Vec<(String, String)> {
        let list = self.world.json("-n weightd get pods -l app.kubernetes.io/name=weightd-provisioner");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let pods = list["items"].as_array().unwrap().iter();
        let living = pods.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        living.map(|pod| (text(&pod["metadata"]["name"]), text(&pod["spec"]["nodeName"]))).collect()
    }
}

impl Drop for Provisioner<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = "-n weightd logs -l app.kubernetes.io/name=weightd-provisioner --prefix --tail=30";
            for line in [log, "get pv,storageclass -o wide"] {
                eprintln!("{}", String::from_utf8_lossy(&self.world.try_kubectl(line).stdout));
            }
        }
        self.world.try_kubectl("delete storageclass -l of=test");
        self.world.try_kubectl(&format!("delete --ignore-not-found -k {}", self.path()));
    }
}

fn until_bound(scene: &Scene<'_>, claim: &str) -> Duration {
    let started = Instant::now();
    until(&format!("{claim} is bound"), || {
        let phase = scene.kubectl(&format!("get pvc {claim} -o jsonpath={{.status.phase}}"));
        (phase == "Bound").then_some(())
    });
    started.elapsed()
}

/// The volume of a claim that is bound.
fn volume_of(scene: &Scene<'_>, claim: &str) -> Value {
    let name = scene.kubectl(&format!("get pvc {claim} -o jsonpath={{.spec.volumeName}}"));
    scene.world.json(&format!("get pv {name}"))
}

/// The pod that made a claim's volume.
fn made_by(scene: &Scene<'_>, claim: &str) -> String {
    until("an event says who", || {
        let selector = format!("involvedObject.name={claim},reason=ProvisioningSucceeded");
        let events =
            scene.world.json(&format!("-n {} get events --field-selector {selector}", scene.namespace));
        let component = events["items"][0]["source"]["component"].as_str()?.to_owned();
        component.split('_').nth(1).map(str::to_owned)
    })
}

fn volumes(world: &World) -> String {
    world.kubectl("get pv -o name")
}

#[test]
fn a_claim_is_read_on_every_node_and_deleted_with_its_volume_and_nothing_else() {
    let world = require!(world());
    let provisioner = require!(Provisioner::install(&world));
    let nodes: BTreeSet<String> = provisioner.pods().into_iter().map(|(_, node)| node).collect();
    assert_eq!(nodes.len(), 2, "one on each of two nodes: {nodes:?}");
    let scene = Scene::new(&world, "provisioned");
    let stored = Stored::new(&world, "provisioned", &ModelShape::tiny());
    let sums = stored.sums();
    let before = volumes(&world);
    let parameters = [("source", stored.source.as_str()), ("layout", "original")];
    scene.apply(&class("at-once", "Immediate", &parameters));
    scene.apply(&class("with-its-pod", "WaitForFirstConsumer", &parameters));

    scene.apply(&claim_of("at-once", "first", READERS));
    eprintln!("bound {:?} after it was made", until_bound(&scene, "first"));
    scene.apply(&(claim_of("at-once", "second", READERS) + &claim_of("with-its-pod", "late", READERS)));
    until_bound(&scene, "second");
    assert_eq!(scene.kubectl("get pvc late -o jsonpath={.status.phase}"), "Pending");

    let names = ["on-one", "on-two", "late-on-two", "late-on-one"];
    let read = |name: &str, node: usize, of: &str| {
        let node = Some(&world.nodes[node]);
        scene.apply(
            &Pod { name, node, script: ONCE, sums: &sums, volume: claim(of), ..Pod::default() }.yaml(),
        );
    };
    for (name, node, of) in [(names[0], 0, "first"), (names[1], 1, "first"), (names[2], 1, "late")] {
        read(name, node, of);
    }
    // It was made for a pod on the other node, and is for all.
    until_bound(&scene, "late");
    read(names[3], 0, "late");
    names.into_iter().for_each(|name| scene.until_phase(name, "Succeeded"));
    for of in ["first", "late"] {
        let volume = volume_of(&scene, of);
        assert!(volume["spec"]["nodeAffinity"].is_null(), "{volume}");
        assert_eq!(volume["spec"]["csi"]["volumeAttributes"]["source"], stored.source.as_str());
    }

    let handle = volume_of(&scene, "first")["spec"]["csi"]["volumeHandle"].as_str().unwrap().to_owned();
    let snapshot = handle.split('.').next().unwrap();
    scene.kubectl("delete pod --all");
    scene.until_nothing_is_mounted();
    scene.kubectl("delete pvc first late");
    until("their volumes are gone", || {
        (volumes(&world).lines().count() == before.lines().count() + 1).then_some(())
    });
    until_bound(&scene, "second");
    for node in &world.nodes {
        let list = String::from_utf8(world.weightctl(node, "ls -o json").stdout).unwrap();
        assert!(list.contains(snapshot), "the model is still on {}: {list}", node.name);
    }
    let read_before = world.proxy.bytes();
    read("after", 0, "second");
    scene.until_phase("after", "Succeeded");
    assert!(world.proxy.bytes() - read_before < 64 << 10, "it came from the node");
    scene.kubectl("delete pod after");
    scene.until_nothing_is_mounted();
    scene.kubectl("delete pvc second");
    until_equal("no volume is left", &before, || volumes(&world));
    provisioner.was_not_refused();
}

#[test]
fn a_mistake_stands_in_the_claims_events_and_mended_it_is_bound_by_itself() {
    let world = require!(world());
    let _provisioner = require!(Provisioner::install(&world));
    let scene = Scene::new(&world, "misprovisioned");
    let stored = Stored::new(&world, "misprovisioned", &ModelShape::tiny());
    let before = volumes(&world);
    let source = ("source", stored.source.as_str());
    let cases: [(&str, Parameters<'_>, &str, &str); 5] = [
        (
            "layout",
            &[source, ("layout", "packed")],
            READERS,
            "cannot be \"packed\": write aligned or original",
        ),
        ("key", &[source, ("speed", "high")], READERS, "\"speed\" is not known: known are source, layout"),
        (
            "no-source",
            &[],
            READERS,
            "\"source\" is missing: write where the weights come from, such as gs://",
        ),
        ("nothing", &[("source", "gs://models/nothing-here")], READERS, "gs://models/nothing-here"),
        ("writers", &[source], "ReadWriteMany", "write accessModes: [ReadOnlyMany]"),
    ];
    for (name, parameters, mode, _) in cases {
        scene.apply(&(class(name, "Immediate", parameters) + &claim_of(name, name, mode)));
    }
    for (name, _, _, told) in cases {
        eprintln!("{name}: {}", scene.until_event(name, &["failed to provision volume", told]));
        assert_eq!(scene.kubectl(&format!("get pvc {name} -o jsonpath={{.status.phase}}")), "Pending");
    }
    assert_eq!(volumes(&world), before, "nothing was made");

    // A class cannot be changed; another of its name can be made.
    world.kubectl("delete storageclass layout");
    scene.apply(&class("layout", "Immediate", &[source, ("layout", "original")]));
    eprintln!("bound {:?} after it was mended", until_bound(&scene, "layout"));
    scene.kubectl("delete pvc --all");
    until_equal("no volume is left", &before, || volumes(&world));
}

#[test]
fn when_the_one_that_provisions_is_killed_another_does() {
    let world = require!(world());
    let provisioner = require!(Provisioner::install(&world));
    let scene = Scene::new(&world, "reprovisioned");
    let stored = Stored::new(&world, "reprovisioned", &ModelShape::tiny());
    let before = volumes(&world);
    scene.apply(&class("again", "Immediate", &[("source", &stored.source)]));
    scene.apply(&claim_of("again", "first", READERS));
    until_bound(&scene, "first");
    let killed = made_by(&scene, "first");
    let pods = provisioner.pods();
    let (_, node) = pods.iter().find(|(name, _)| *name == killed).expect("one of its pods made it");
    let node = world.nodes.iter().find(|known| known.name == *node).unwrap();
    world.in_node(node, "pkill -KILL -x csi-provisioner");
    // Its container would start again, and might be the first to see that nobody provisions.
    world.kubectl(&format!("-n weightd delete pod {killed} --force --grace-period=0"));
    scene.apply(&claim_of("again", "second", READERS));
    eprintln!("bound {:?} after the other was killed", until_bound(&scene, "second"));
    assert_ne!(made_by(&scene, "second"), killed);
    // What the one made, the other deletes.
    scene.kubectl("delete pvc first second");
    until_equal("no volume is left", &before, || volumes(&world));
    provisioner.was_not_refused();
}

#[test]
fn claims_are_bound_after_drivers_were_killed_and_their_directories_wiped() {
    let world = require!(world());
    let provisioner = require!(Provisioner::install(&world));
    let scene = Scene::new(&world, "unprovisioned");
    let stored = Stored::new(&world, "unprovisioned", &ModelShape::tiny());
    let before = volumes(&world);
    scene.apply(&class("faults", "Immediate", &[("source", &stored.source)]));
    // A directory that was made anew is not the one that a container has; one that lost its driver starts again.
    for (name, fault) in [("wiped", Fault::WipedPlugins), ("killed", Fault::KilledDriver)] {
        world.nodes.iter().for_each(|node| fault.strike(&world, node));
        scene.apply(&claim_of("faults", name, READERS));
        eprintln!("bound {:?} after {fault:?}", until_bound(&scene, name));
    }
    until_installed(&world.cluster).unwrap();
    provisioner.until_ready();
    scene.kubectl("delete pvc --all");
    until_equal("no volume is left", &before, || volumes(&world));
    provisioner.was_not_refused();
}

#[test]
fn the_provisioner_may_do_what_it_does_and_little_else() {
    let world = require!(world());
    let _provisioner = require!(Provisioner::install(&world));
    let scene = Scene::new(&world, "rights");
    let asked = |account: &str, line: &str| {
        let answer = world.try_kubectl(&format!("auth can-i {line} --as={account}"));
        String::from_utf8(answer.stdout).unwrap().trim() == "yes"
    };
    for line in [
        "get secrets",
        "get configmaps",
        "list pods",
        "create pods",
        "list nodes",
        "patch nodes",
        "update persistentvolumes",
        "create persistentvolumeclaims",
        "delete persistentvolumeclaims",
        "create storageclasses",
        "create serviceaccounts/token",
        "-n weightd update leases.coordination.k8s.io/another",
        "-n weightd delete leases.coordination.k8s.io/csi-weightd-io",
        "-n default create leases.coordination.k8s.io",
    ] {
        assert!(!asked(ACCOUNT, line), "{line}");
    }
    assert!(asked(ACCOUNT, "create persistentvolumes"));
    let driver = "system:serviceaccount:weightd:weightd";
    assert!(!asked(driver, "create persistentvolumes"), "the driver has no right more than without it");

    // Its volumes are its own, and of claims it changes one annotation.
    let foreign = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": "rights-foreign" },
        "spec": {
            "accessModes": ["ReadOnlyMany"], "capacity": { "storage": "1Gi" }, "storageClassName": "",
            "hostPath": { "path": "/" },
        },
    });
    refused(&world, "create", &foreign, "only volumes of csi.weightd.io");
    world.apply("default", &foreign.to_string());
    let deleted = world.try_kubectl(&format!("--as={ACCOUNT} delete pv rights-foreign --wait=false"));
    let said = String::from_utf8_lossy(&deleted.stderr).into_owned();
    assert!(!deleted.status.success() && said.contains("only volumes of csi.weightd.io"), "{said}");
    world.kubectl("delete pv rights-foreign");

    let stored = Stored::new(&world, "rights", &ModelShape::tiny());
    let before = volumes(&world);
    scene.apply(&class("rights", "Immediate", &[("source", &stored.source)]));
    // Its node is gone: that is taken back, and then it is provisioned.
    let gone = "  annotations: {volume.kubernetes.io/selected-node: gone}\nspec:";
    scene.apply(&claim_of("rights", "model", READERS).replacen("spec:", gone, 1));
    until_bound(&scene, "model");
    let mut claim = world.json("-n rights get pvc model");
    assert!(claim["metadata"]["annotations"]["volume.kubernetes.io/selected-node"].is_null(), "{claim}");
    claim["metadata"]["labels"] = json!({ "a": "b" });
    refused(&world, "replace", &claim, "changes nothing else of it");
    scene.kubectl("delete pvc model");
    until_equal("no volume is left", &before, || volumes(&world));
}

/// Waits until the API server refuses the provisioner something for that reason: policies take a moment.
fn refused(world: &World, verb: &str, object: &Value, why: &str) {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(object.to_string().as_bytes()).unwrap();
    let line = format!("--as={ACCOUNT} {verb} --dry-run=server -f {}", file.path().display());
    until(&format!("it may not {verb}: {why}"), || {
        let answer = world.try_kubectl(&line);
        let said = String::from_utf8_lossy(&answer.stderr).into_owned();
        (!answer.status.success() && said.contains(why)).then_some(())
    });
}
