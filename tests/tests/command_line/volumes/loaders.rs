//! Loaders that others wrote.

use std::process::Command;

use weightd_harness::{FakeGcs, mounts, python, require};

use super::{SLOW, fuse};
use crate::place::Place;

#[tokio::test(flavor = "multi_thread")]
async fn safe_open_reads_every_tensor_while_it_loads_and_after() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let python = require!(python());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/command_line/volumes/loader.py");
    let run = |what: &str, directory: &std::path::Path| {
        let ended = Command::new(&python).args([script, what]).arg(directory).output().unwrap();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        String::from_utf8(ended.stdout).unwrap()
    };
    let place = Place::new(SLOW).gcs(&gcs.endpoint());
    run("make", &place.at("model"));
    gcs.create_bucket("models").await.unwrap();
    gcs.place_directory("models", "np", &place.at("model")).unwrap();
    let _agent = place.agent().await;
    for layout in ["aligned", "original"] {
        let target = place.at(layout);
        place.ask(&format!("mount gs://models/np {} --layout {layout}", target.display())).done();
        assert_eq!(run("read", &target), "36 tensors are right\n");
        place.ask(&format!("prefetch gs://models/np --layout {layout}")).done();
        assert_eq!(run("read", &target), "36 tensors are right\n");
        place.ask(&format!("umount {}", target.display())).done();
    }
    mounts::remove_below(&place.at(""));
}
