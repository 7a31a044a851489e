//! Complete snapshots: a read-only bind that needs no agent.

use std::{fs, process::Command};

use weightd_harness::{FakeGcs, ModelShape, assert_same_tensors, mounts, require};

use super::{Node, SOURCE, fuse};

#[tokio::test(flavor = "multi_thread")]
async fn a_complete_snapshot_is_bound_and_outlives_its_agent() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let node = Node::new(&gcs, &gcs.endpoint(), &ModelShape::small(), "").await;
    let mut agent = node.place.agent().await;
    node.place.ask(&format!("prefetch {SOURCE}")).done();
    let target = node.target();
    node.place.ask(&format!("mount {SOURCE} {}", target.display())).done();
    assert_eq!(node.volume(), ("bind".to_owned(), "complete".to_owned()));
    assert_same_tensors(&node.model.directory, &target);

    agent.kill();
    assert_same_tensors(&node.model.directory, &target);
    // What is mounted is in use also for whoever comes next, with an agent or without one.
    node.place.run(&format!("rm {SOURCE} --force")).failed(75, &["in use"]);
    let _agent = node.place.agent().await;
    assert_eq!(node.volume(), ("bind".to_owned(), "complete".to_owned()));
    node.place.ask(&format!("rm {SOURCE} --force")).failed(75, &["in use"]);
    node.place.ask(&format!("umount {}", target.display())).done();
    assert_eq!(mounts::below(&target), Vec::<std::path::PathBuf>::new());
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
    node.place.ask(&format!("rm {SOURCE}")).done();
}

/// Root in a mount namespace of its own, which got the volume by propagation, and asks for a writable bind of it.
#[tokio::test(flavor = "multi_thread")]
async fn root_in_another_namespace_cannot_write() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let node = Node::new(&gcs, &gcs.endpoint(), &ModelShape::small(), super::SLOW).await;
    let _agent = node.place.agent().await;
    let (target, again) = (node.target(), node.place.at("again"));
    fs::create_dir(&again).unwrap();
    for mode in ["fuse", "bind"] {
        node.mount(&format!("--mode {mode}"));
        let file = target.join(&node.model.files[0]);
        let copy = again.join(&node.model.files[0]);
        let before = fs::read(&file).unwrap();
        let script = format!(
            "mount --bind {target} {again} && ! printf x >> {file} && ! printf x >> {copy} && \
             ! printf x > {target}/new && ! rm {file} && ! chmod 777 {copy} && ! mv {copy} {again}/moved",
            target = target.display(),
            again = again.display(),
            file = file.display(),
            copy = copy.display(),
        );
        let refused = Command::new("unshare").args(["--mount", "sh", "-c", &script]).output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.success(), "{mode}: {said}");
        assert!(said.contains("Read-only file system"), "{mode}: {said}");
        assert!(fs::read(&file).unwrap() == before, "{mode}");
        node.place.ask(&format!("umount {}", target.display())).done();
    }
}
