//! An agent and the tiers it finds.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
};

use weightd_harness::{FakeGcs, LoopMount, ModelShape, Wire, mounts, require};

use super::{SOURCE, Workshop, assert_same_model};
use crate::{
    place::{Place, number},
    program::until,
    volumes::fuse,
};

/// What an origin says without a byte of weights.
const WORDS_BYTES: u64 = 64 << 10;

/// Has an agent look for tiers in the place's own disks.
pub(super) fn with_tiers(place: &Place, more: &str) {
    let pattern = place.at("disks/*");
    place.configure(&place.at("store"), &format!("[tiers]\ndirectories = [{pattern:?}]\n{more}"));
}

/// Volumes below a place are gone with it.
pub(super) struct Unmounted<'p>(pub(super) &'p Place);

impl Drop for Unmounted<'_> {
    fn drop(&mut self) {
        mounts::remove_below(&self.0.at(""));
    }
}

pub(super) fn used(place: &Place) -> u64 {
    number(&place.ask("status -o json").json()["store"], "used_bytes")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_on_a_boot_disk_costs_no_request_and_no_room() {
    let gcs = require!(FakeGcs::start().await);
    require!(fuse());
    let wire = Wire::start(&gcs.endpoint()).await.unwrap();
    let workshop = Workshop::new(&gcs, wire.url(), &ModelShape::small(), "").await;
    let place = &workshop.place;
    let _unmounted = Unmounted(place);
    let disk = require!(workshop.mounted("gke-weights-disk", ""));
    with_tiers(place, "ask_origin = false");
    let before = wire.received();
    let _agent = place.agent().await;
    let target = place.at("target");
    place.ask(&format!("mount {SOURCE} {} --wait", target.display())).done();
    assert_same_model(&workshop.demo.directory, &target);
    let volume = &place.ask("mounts -o json").json()["volumes"][0];
    assert_eq!((&volume["serving"], &volume["state"]), (&"bind".into(), &"complete".into()), "{volume}");
    place.ask(&format!("prefetch {SOURCE}")).done();
    assert_eq!(wire.received(), before, "the origin was asked");
    assert_eq!(used(place), 0);
    // Who looks sees where the bytes come from.
    let shown = place.ask(&format!("get {SOURCE} -o json")).json();
    for object in shown["objects"].as_array().unwrap() {
        assert_eq!(object["tier"].as_str().unwrap(), disk.path().to_str().unwrap());
    }
    assert!(place.ask(&format!("get {SOURCE}")).done().contains("READ FROM"));
    let tier = &place.ask("status -o json").json()["tiers"][0];
    assert_eq!((number(tier, "snapshot_count"), &tier["writable"]), (1, &false.into()), "{tier}");
    place.ask(&format!("umount {}", target.display())).done();
    place.ask(&format!("rm {SOURCE}")).failed(75, &["read-only tier", disk.path().to_str().unwrap()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn by_default_the_origin_says_what_its_source_is_and_sends_no_weights() {
    let gcs = require!(FakeGcs::start().await);
    require!(fuse());
    let wire = Wire::start(&gcs.endpoint()).await.unwrap();
    let workshop = Workshop::new(&gcs, wire.url(), &ModelShape::small(), "").await;
    let place = &workshop.place;
    let _unmounted = Unmounted(place);
    let _disk = require!(workshop.mounted("weights", ""));
    with_tiers(place, "");
    let before = wire.received();
    let agent = place.agent().await;
    let target = place.at("target");
    place.ask(&format!("mount {SOURCE} {}", target.display())).done();
    assert!(wire.received() - before < WORDS_BYTES);
    drop(agent);
    // The next agent knows the volume again, and can take it away.
    let _agent = place.agent().await;
    let volume = &place.ask("mounts -o json").json()["volumes"][0];
    assert_eq!(volume["state"], "complete", "{volume}");
    place.ask(&format!("umount {}", target.display())).done();
    assert!(place.ask("mounts -o json").json()["volumes"].as_array().unwrap().is_empty());

    // What the origin has by now is something else: it is fetched, as far as the tier does not have it.
    gcs.upload("models", "demo/extra.dat", vec![1; 3 << 20]).await.unwrap();
    let before = wire.received();
    place.ask(&format!("mount {SOURCE} {} --wait", target.display())).done();
    assert_eq!(fs::read(target.join("extra.dat")).unwrap(), vec![1; 3 << 20]);
    assert_same_model(&workshop.demo.directory, &target);
    assert!(wire.received() - before < (3 << 20) + WORDS_BYTES, "{} bytes", wire.received() - before);
    assert!(used(place) <= 4 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_model_that_a_tier_has_in_part_only_the_rest_is_fetched() {
    let gcs = require!(FakeGcs::start().await);
    require!(fuse());
    let wire = Wire::start(&gcs.endpoint()).await.unwrap();
    let workshop = Workshop::new(&gcs, wire.url(), &ModelShape::small(), "").await;
    let place = &workshop.place;
    let _unmounted = Unmounted(place);
    let shard = workshop.demo.files.iter().find(|name| name.contains("00001")).unwrap();
    let _disk = require!(workshop.mounted("weights", &format!("--exclude {shard} --exclude *.index.json")));
    with_tiers(place, "");
    let agent = place.agent().await;
    let missing = fs::metadata(workshop.demo.directory.join(shard)).unwrap().len();
    let before = wire.received();
    place.ask(&format!("prefetch {SOURCE}")).done();
    let received = wire.received() - before;
    assert!(received > missing && received < missing + (1 << 20), "{received} bytes for {missing}");
    let target = place.at("target");
    for restarted in [false, true] {
        place.ask(&format!("mount {SOURCE} {}", target.display())).done();
        assert_same_model(&workshop.demo.directory, &target);
        place.ask(&format!("umount {}", target.display())).done();
        if restarted {
            break;
        }
        place.ask(&format!("path {SOURCE}")).failed(75, &["read-only tier"]);
    }
    drop(agent);
    let before = wire.received();
    let _agent = place.agent().await;
    place.ask(&format!("prefetch {SOURCE}")).done();
    assert!(wire.received() - before < WORDS_BYTES);
    place.ask("verify").done();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_a_tier_is_fetched_again_and_nothing_else_is() {
    let gcs = require!(FakeGcs::start().await);
    require!(fuse());
    let wire = Wire::start(&gcs.endpoint()).await.unwrap();
    let workshop = Workshop::new(&gcs, wire.url(), &ModelShape::demo(), "").await;
    let place = &workshop.place;
    let _unmounted = Unmounted(place);
    drop(require!(workshop.mounted("weights", "")));
    let image = place.at("weights.raw");
    flip_in_shards(&image, &place.at("disks/weights"), 1, &[20 << 20]);
    let _disk = require!(LoopMount::read_only(&image, &place.at("disks/weights")));
    with_tiers(place, "");
    let agent = place.agent().await;
    let before = wire.received();
    let found = place.ask("verify -o json").json();
    assert_eq!((number(&found, "bad_chunks"), number(&found, "repaired_chunks")), (1, 1), "{found}");
    let received = wire.received() - before;
    assert!(received < 10 << 20, "{received} bytes for a chunk");
    let target = place.at("target");
    place.ask(&format!("mount {SOURCE} {}", target.display())).done();
    assert_same_model(&workshop.demo.directory, &target);
    place.ask(&format!("umount {}", target.display())).done();
    drop(agent);
    // That it is bad is known for good.
    let _agent = place.agent().await;
    place.ask(&format!("prefetch {SOURCE}")).done();
    assert_eq!(number(&place.ask("verify -o json").json(), "bad_chunks"), 0);
    place.ask(&format!("mount {SOURCE} {}", target.display())).done();
    assert_same_model(&workshop.demo.directory, &target);
}

/// Flips a bit at each of these places of each of the longest blobs of an image that is not mounted.
pub(super) fn flip_in_shards(image: &Path, at: &Path, shards: usize, offsets: &[u64]) {
    let mounted = LoopMount::read_only(image, at).unwrap();
    let blobs = fs::read_dir(mounted.path().join("blobs")).unwrap();
    let files = blobs.flat_map(|directory| fs::read_dir(directory.unwrap().path()).unwrap());
    let mut files: Vec<_> = files.map(|file| file.unwrap()).collect();
    files.sort_by_key(|file| std::cmp::Reverse(file.metadata().unwrap().len()));
    let starts: Vec<u64> = files[..shards].iter().map(|file| first_byte(&file.path())).collect();
    drop(mounted);
    let file = OpenOptions::new().read(true).write(true).open(image).unwrap();
    for offset in starts.iter().flat_map(|start| offsets.iter().map(move |offset| start + offset)) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    }
}

/// Where a file of a mounted image begins on the disk.
fn first_byte(file: &Path) -> u64 {
    let said = super::system(std::process::Command::new("filefrag").args(["-v", "-b4096"]).arg(file));
    let first = said.lines().find(|line| line.trim_start().starts_with("0:")).unwrap();
    let start: u64 = first.split(':').nth(2).unwrap().trim().split("..").next().unwrap().parse().unwrap();
    start * 4096
}

#[tokio::test(flavor = "multi_thread")]
async fn tiers_come_and_go_while_the_agent_runs() {
    let gcs = require!(FakeGcs::start().await);
    require!(fuse());
    let wire = Wire::start(&gcs.endpoint()).await.unwrap();
    let workshop = Workshop::new(&gcs, wire.url(), &ModelShape::small(), "").await;
    let place = &workshop.place;
    let _unmounted = Unmounted(place);
    with_tiers(place, "");
    let _agent = place.agent().await;
    let disk = require!(workshop.mounted("weights", ""));
    let tiers = || place.ask("status -o json").json()["tiers"].as_array().unwrap().len();
    until("the tier is found", async || (tiers() == 1).then_some(())).await;
    let (target, before) = (place.at("target"), wire.received());
    place.ask(&format!("mount {SOURCE} {}", target.display())).done();
    assert!(wire.received() - before < WORDS_BYTES);

    disk.detach();
    until("the tier is missed", async || (tiers() == 0).then_some(())).await;
    let events = place.ask("mounts -o json").json()["events"].to_string();
    assert!(events.contains("which is gone"), "{events}");
    // The volume is still there, and can be taken away.
    place.ask(&format!("umount {}", target.display())).done();
    place.ask(&format!("mount {SOURCE} {} --wait", target.display())).done();
    assert_same_model(&workshop.demo.directory, &target);
    assert!(wire.received() - before > workshop.demo.file_bytes().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_sound_tier_is_left_out_with_the_reason() {
    let gcs = require!(FakeGcs::start().await);
    let workshop = Workshop::new(&gcs, &gcs.endpoint(), &ModelShape::tiny(), "").await;
    let place = &workshop.place;
    // Another file system, a later format, a manifest that was damaged, a link that leads elsewhere.
    fs::create_dir_all(place.at("disks/other/lost+found")).unwrap();
    for name in ["later", "damaged", "linked"] {
        place.run(&format!("export --to {} {SOURCE}", place.at(&format!("disks/{name}")).display())).done();
    }
    let at = |name: &str| place.at(&format!("disks/{name}"));
    fs::write(at("later").join("format"), "weightd-store 9\n").unwrap();
    let manifest = fs::read_dir(at("damaged").join("snapshots")).unwrap().map(|entry| entry.unwrap().path());
    let manifest = manifest.into_iter().find(|path| path.is_file()).unwrap();
    let text = fs::read_to_string(&manifest).unwrap().replacen("demo", "dem0", 1);
    writable(&manifest);
    fs::write(&manifest, text).unwrap();
    let directory = fs::read_dir(at("linked").join("snapshots")).unwrap().map(|entry| entry.unwrap().path());
    let directory = directory.into_iter().find(|path| path.is_dir()).unwrap();
    writable(&directory);
    fs::remove_file(directory.join("config.json")).unwrap();
    std::os::unix::fs::symlink("/etc/shadow", directory.join("config.json")).unwrap();

    with_tiers(place, "ask_origin = false");
    let _agent = place.agent().await;
    assert!(place.ask("ls -o json").json().as_array().unwrap().is_empty());
    let log = fs::read_to_string(place.at("log")).unwrap();
    for words in ["format 9", "the manifest is damaged", "config.json is not the blob", "mounted for writing"]
    {
        assert!(log.contains(words), "{words} is not in:\n{log}");
    }
    // Nothing of them is served: the origin is asked.
    place.ask(&format!("prefetch {SOURCE}")).done();
    let stored = place.path_by_agent(SOURCE);
    assert_same_model(&workshop.demo.directory, &stored);
    assert!(stored.starts_with(place.at("store")));
}

fn writable(path: &Path) {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(path, mode).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn four_agents_share_one_image() {
    let gcs = require!(FakeGcs::start().await);
    require!(fuse());
    let wire = Wire::start(&gcs.endpoint()).await.unwrap();
    let workshop = Workshop::new(&gcs, wire.url(), &ModelShape::small(), "").await;
    let image = workshop.place.at("weights.raw");
    drop(require!(workshop.mounted("weights", "")));
    let before = wire.received();
    let mut nodes = Vec::new();
    for _ in 0..4 {
        let place = Place::new("").gcs(wire.url());
        // A device of its own, as every node has.
        let disk = require!(LoopMount::read_only(&image, &place.at("disks/weights")));
        with_tiers(&place, "ask_origin = false");
        let agent = place.agent().await;
        nodes.push((agent, disk, place));
    }
    for (_, _, place) in &nodes {
        let target = place.at("target");
        place.ask(&format!("mount {SOURCE} {}", target.display())).done();
        assert_same_model(&workshop.demo.directory, &target);
        assert_eq!(place.ask("mounts -o json").json()["volumes"].as_array().unwrap().len(), 1);
    }
    assert_eq!(wire.received(), before);
    for (_, _, place) in &nodes {
        mounts::remove_below(&place.at("target"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_a_tier_of_another_node() {
    let gcs = require!(FakeGcs::start().await);
    let wire = Wire::start(&gcs.endpoint()).await.unwrap();
    let workshop = Workshop::new(&gcs, wire.url(), &ModelShape::small(), "").await;
    let place = &workshop.place;
    let volume = place.at("disks/shared");
    place.run(&format!("export --to {} {SOURCE}", volume.display())).done();
    assert!(!volume.join("index.redb").exists() && !volume.join("tmp").exists());
    assert_same_model(&workshop.demo.directory, &fs::canonicalize(only_snapshot(&volume)).unwrap());
    let again = place.run(&format!("export --to {} {SOURCE} -o json", volume.display())).json();
    assert_eq!(number(&again, "fetched_bytes"), 0, "{again}");
    with_tiers(place, "ask_origin = false");
    let before = wire.received();
    let _agent = place.agent().await;
    let stored = place.path_by_agent(SOURCE);
    assert!(stored.starts_with(&volume), "{}", stored.display());
    assert_eq!(wire.received(), before);
}

fn only_snapshot(store: &Path) -> std::path::PathBuf {
    let directories = fs::read_dir(store.join("snapshots")).unwrap().map(|entry| entry.unwrap().path());
    directories.into_iter().find(|path| path.is_dir()).unwrap()
}
