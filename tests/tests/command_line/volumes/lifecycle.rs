//! Mounting and unmounting, twice, wrongly, and a thousand times.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    os::unix::fs::{MetadataExt, PermissionsExt},
    process::Command,
    time::{Duration, Instant},
};

use rustix::{fs::XattrFlags, io::Errno};
use weightd_harness::{FakeGcs, Model, ModelShape, mounts, require};

use super::{Node, SLOW, SOURCE, fuse};

#[tokio::test(flavor = "multi_thread")]
async fn mounting_shows_the_files_before_any_tensor_is_here() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    // As good as no bandwidth: what is seen is seen without tensors.
    let more = "[fetch]\nbandwidth = \"1MiB/s\"\nmin_requests = 1\nmax_requests = 1";
    let node = Node::new(&gcs, &gcs.endpoint(), &ModelShape::demo(), more).await;
    let _agent = node.place.agent().await;
    let target = node.target();
    let started = Instant::now();
    node.place.ask(&format!("mount {SOURCE} {}", target.display())).done();
    eprintln!("mounted in {:?}", started.elapsed());
    for file in &node.model.files {
        let shown = fs::metadata(target.join(file)).unwrap();
        assert!(shown.len() >= fs::metadata(node.model.directory.join(file)).unwrap().len(), "{file}");
        assert_eq!(shown.permissions().mode() & 0o7777, 0o444);
        assert_eq!((shown.uid(), shown.gid(), shown.blocks()), (0, 0, shown.len().div_ceil(512)));
    }
    assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o7777, 0o555);
    let size = node.model.file_bytes().unwrap();
    let df = Command::new("df").args(["--output=size,avail", "-B1"]).arg(&target).output().unwrap();
    let df = String::from_utf8(df.stdout).unwrap();
    let numbers: Vec<u64> = df.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert!(numbers[0].abs_diff(size) < 1 << 20 && numbers[1] == 0, "{df}");
    // Nobody in particular can read, and what is no file system's business is refused as such.
    let small = target.join("config.json");
    let nobody =
        Command::new("setpriv").args(["--reuid=65534", "--clear-groups", "cat"]).arg(&small).output();
    assert_eq!(nobody.unwrap().stdout, fs::read(node.model.directory.join("config.json")).unwrap());
    let none = Command::new("setfattr").args(["-n", "user.x", "-v", "1"]).arg(&small).output();
    assert!(none.is_err() || !none.unwrap().status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_reading_is_refused_with_the_errno_that_says_why() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let node = Node::new(&gcs, &gcs.endpoint(), &ModelShape::tiny(), "").await;
    let _agent = node.place.agent().await;
    for mode in ["fuse", "bind"] {
        let target = node.place.at(mode);
        node.place.ask(&format!("mount {SOURCE} {} --mode {mode}", target.display())).done();
        let (file, new) = (target.join("config.json"), target.join("new"));
        let refused = [
            ("create", fs::write(&new, "x")),
            ("open for writing", fs::OpenOptions::new().write(true).open(&file).map(drop)),
            ("truncate", fs::OpenOptions::new().write(true).truncate(true).open(&file).map(drop)),
            ("rename", fs::rename(&file, &new)),
            ("remove", fs::remove_file(&file)),
            ("make a directory", fs::create_dir(&new)),
            ("link", fs::hard_link(&file, &new)),
            ("symlink", std::os::unix::fs::symlink("x", &new)),
            ("chmod", fs::set_permissions(&file, fs::Permissions::from_mode(0o777))),
            ("chown", std::os::unix::fs::chown(&file, Some(1), None)),
            (
                "setxattr",
                rustix::fs::setxattr(&file, "user.x", b"1", XattrFlags::empty()).map_err(Into::into),
            ),
        ];
        for (what, outcome) in refused {
            let errno = outcome.unwrap_err().raw_os_error();
            assert_eq!(errno, Some(Errno::ROFS.raw_os_error()), "{mode}: {what}");
        }
        let found = rustix::fs::getxattr(&file, "user.x", &mut [0_u8; 8]).unwrap_err();
        assert!([Errno::NODATA, Errno::OPNOTSUPP].contains(&found), "{mode}: {found}");
    }
    let file = fs::File::open(node.place.at("fuse").join("config.json")).unwrap();
    assert_eq!(rustix::fs::ioctl_getflags(&file).unwrap_err(), Errno::NOTTY);
}

#[tokio::test(flavor = "multi_thread")]
async fn mounting_and_unmounting_may_be_repeated_and_mistakes_are_named() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let node = Node::new(&gcs, &gcs.endpoint(), &ModelShape::small(), "").await;
    gcs.place_directory("models", "other", &node.model.directory).unwrap();
    let _agent = node.place.agent().await;
    let target = node.target();
    let mount = |source: &str, target: &str| node.place.ask(&format!("mount {source} {target}"));
    let shown = target.display().to_string();
    mount(SOURCE, &shown).done();
    mount(SOURCE, &shown).done();
    assert_eq!(mounts::volumes_below(&target).len(), 1, "one mount, however often it was asked for");
    mount("gs://models/other", &shown).failed(64, &[&shown, "unmount it first"]);
    mount("gs://models/none", &format!("{shown}-2")).failed(66, &["gs://models/none"]);
    assert!(!node.place.at("target-2").exists(), "nothing is left of a mount that failed");
    let file = node.place.at("file");
    fs::write(&file, b"x").unwrap();
    mount(SOURCE, &file.display().to_string()).failed(64, &["is a file"]);
    mount(SOURCE, &node.place.at("store/x").display().to_string()).failed(64, &["lies in the store"]);
    mount(SOURCE, "/proc").failed(64, &["/proc"]);
    node.place.ask(&format!("umount {shown}")).done();
    let twice = node.place.ask(&format!("umount {shown}"));
    assert!(twice.words.contains("nothing was mounted"), "{}", twice.words);
    twice.done();
    node.place.ask("umount /proc").failed(64, &["which is no volume"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_below_a_link_is_known_by_the_name_it_was_mounted_by() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let node = Node::new(&gcs, &gcs.endpoint(), &ModelShape::tiny(), "").await;
    let _agent = node.place.agent().await;
    fs::create_dir(node.place.at("there")).unwrap();
    std::os::unix::fs::symlink("there", node.place.at("link")).unwrap();
    let target = node.place.at("link/deep/model");
    for _ in 0..2 {
        node.place.ask(&format!("mount {SOURCE} {}", target.display())).done();
    }
    assert_eq!(
        mounts::volumes_below(&node.place.at("there")).len(),
        1,
        "one mount, however often it was asked for"
    );
    node.place.ask(&format!("umount {}", target.display())).done();
    assert_eq!(mounts::below(&node.place.at("there")).len(), 0);
    std::os::unix::fs::symlink("store", node.place.at("shortcut")).unwrap();
    let within = node.place.at("shortcut/x").display().to_string();
    node.place.ask(&format!("mount {SOURCE} {within}")).failed(64, &["lies in the store"]);
}

/// As `umount --all` does it.
#[tokio::test(flavor = "multi_thread")]
async fn volumes_can_be_made_after_someone_unmounted_the_file_system_they_are_parts_of() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let node = Node::new(&gcs, &gcs.endpoint(), &ModelShape::small(), "").await;
    let own = node.place.at("own");
    node.place.configure(&node.place.at("store"), &format!("[volumes]\ndirectory = {own:?}"));
    let _agent = node.place.agent().await;
    node.mount("--mode fuse");
    let (name, early) = (&node.model.files[0], node.place.at("early"));
    let is_right = |shown: &std::path::Path| {
        fs::read(shown.join(name)).unwrap() == fs::read(node.model.directory.join(name)).unwrap()
    };
    node.place.ask(&format!("mount {SOURCE} {} --layout original --mode fuse", early.display())).done();
    mounts::remove_below(&own);
    node.place.ask(&format!("umount {}", node.target().display())).done();
    node.mount("--mode fuse");
    assert!(is_right(&node.target()) && is_right(&early), "both the new one and the one from before");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_read_goes_from_the_tree_at_once_and_its_reader_reads_on() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let node = Node::new(&gcs, &gcs.endpoint(), &ModelShape::demo(), SLOW).await;
    let _agent = node.place.agent().await;
    node.mount("");
    let name = node.model.files.iter().find(|name| name.ends_with(".safetensors")).unwrap();
    let mut file = File::open(node.target().join(name)).unwrap();
    node.place.ask(&format!("umount {}", node.target().display())).done();
    assert_eq!(mounts::below(&node.target()).len(), 0);
    file.seek(SeekFrom::Start(1)).unwrap();
    let mut read = Vec::new();
    file.read_to_end(&mut read).unwrap();
    assert!(read == fs::read(node.model.directory.join(name)).unwrap()[1..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_agent_a_volume_ends_with_the_process_that_serves_it() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let node = Node::new(&gcs, &gcs.endpoint(), &ModelShape::demo(), SLOW).await;
    let target = node.target();
    let line = format!("mount {SOURCE} {} --layout original", target.display());
    for signal in ["INT", "TERM"] {
        let mut serving = crate::program::Running::start(&mut node.place.embedded(&line));
        let file = target.join("config.json");
        crate::program::until("it is mounted", async || file.exists().then_some(())).await;
        serving.signal(signal);
        serving.ended().await;
        assert_eq!(mounts::below(&node.place.at("")), Vec::<std::path::PathBuf>::new());
    }
    // One that is killed leaves mounts that nobody serves; the next clears them away.
    let mut serving = crate::program::Running::start(&mut node.place.embedded(&line));
    crate::program::until("it is mounted", async || target.join("config.json").exists().then_some(())).await;
    serving.kill();
    let mut serving = crate::program::Running::start(&mut node.place.embedded(&line));
    let is_there = async || fs::read(target.join("config.json")).ok();
    let read = crate::program::until("it is mounted again", is_there).await;
    assert_eq!(read, fs::read(node.model.directory.join("config.json")).unwrap());
    serving.signal("INT");
    serving.ended().await;
    assert_eq!(mounts::below(&node.place.at("")), Vec::<std::path::PathBuf>::new());
}

/// A thousand mounts of fifty snapshots, half of them while they load.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_volumes_of_fifty_snapshots() {
    const SNAPSHOTS: usize = 50;
    const EACH: usize = 20;
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let node = Node::new(&gcs, &gcs.endpoint(), &ModelShape::tiny(), "").await;
    let tiny = Model::write(&node.place.at("tiny"), &ModelShape::tiny()).unwrap();
    for at in 0..SNAPSHOTS {
        gcs.place_directory("models", &format!("m{at}"), &tiny.directory).unwrap();
    }
    let _agent = node.place.agent().await;
    let client = weightd_client::Client::connect(&node.place.socket()).await.unwrap();
    let request = |snapshot: usize, copy: usize| weightd_proto::v1::PublishRequest {
        source: format!("gs://models/m{snapshot}"),
        target_path: node.place.at(&format!("t/{snapshot}-{copy}")).display().to_string(),
        mode: if snapshot.is_multiple_of(2) { 0 } else { weightd_proto::v1::VolumeMode::Fuse.into() },
        ..Default::default()
    };
    let started = Instant::now();
    let all = (0..SNAPSHOTS).flat_map(|snapshot| (0..EACH).map(move |copy| (snapshot, copy)));
    let all: Vec<_> = all.collect();
    for some in all.chunks(50) {
        let publishing = some.iter().map(|&(snapshot, copy)| client.publish(request(snapshot, copy)));
        for published in futures::future::join_all(publishing).await {
            published.unwrap();
        }
    }
    eprintln!("{} volumes in {:?}", all.len(), started.elapsed());
    assert_eq!(client.list_volumes().await.unwrap().volumes.len(), all.len());
    for (snapshot, copy) in all.iter().step_by(37) {
        let read = fs::read(node.place.at(&format!("t/{snapshot}-{copy}/{}", tiny.files[1]))).unwrap();
        assert!(!read.is_empty());
    }
    let started = Instant::now();
    for some in all.chunks(50) {
        let gone = some.iter().map(|(snapshot, copy)| {
            client.unpublish(node.place.at(&format!("t/{snapshot}-{copy}")).display().to_string())
        });
        for gone in futures::future::join_all(gone).await {
            assert!(gone.unwrap());
        }
    }
    eprintln!("unmounted in {:?}", started.elapsed());
    assert_eq!(mounts::below(&node.place.at("t")).len(), 0);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(client.list_volumes().await.unwrap().volumes.is_empty());
}
