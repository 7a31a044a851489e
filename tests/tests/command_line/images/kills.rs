//! `kill -9` during a build or an export, at any moment.

use std::{fs, process::Stdio, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::sleep;
use weightd_harness::{FakeGcs, ModelShape, Wire, require};

use super::{ODD, SOURCE, Workshop, assert_same_file, assert_same_model, snapshots};
use crate::program::Running;

/// Slow enough that kills land within the build.
const SLOW: &str = "[fetch]\nbandwidth = \"20MiB/s\"\nmin_requests = 1\nmax_requests = 2";
const KILLS: u32 = 4;

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_was_killed_goes_on_and_ends_as_if_it_had_not_been() {
    let gcs = require!(FakeGcs::start().await);
    let wire = Wire::start(&gcs.endpoint()).await.unwrap();
    let workshop = Workshop::new(&gcs, wire.url(), &ModelShape::demo(), SLOW).await;
    let place = &workshop.place;
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for name in ["disk.raw", "disk.tar.gz"] {
        let output = place.at(name);
        let line = format!("image build --model {SOURCE} --output {}", output.display());
        let before = wire.received();
        let (mut kills, mut is_done) = (0, false);
        while kills < KILLS && !is_done {
            let mut build = place.embedded(&line);
            let mut build = Running::start(build.stdout(Stdio::null()).stderr(Stdio::null()));
            sleep(Duration::from_millis(random.random_range(500..6000))).await;
            is_done = build.kill().is_some();
            kills += u32::from(!is_done);
            assert_eq!(output.exists(), is_done, "seed {seed}: half an image has the name of a whole one");
        }
        if !is_done {
            place.run(&line).done();
        }
        let received = wire.received() - before;
        // Every kill costs what came since the last record, of two seconds, and what three requests had brought.
        let bound = workshop.demo.file_bytes().unwrap() + u64::from(kills) * (96 << 20);
        assert!(received < bound, "seed {seed}: {received} bytes after {kills} kills");
        let whole = place.at(&format!("whole.{name}"));
        place.run(&format!("image build --model {SOURCE} --output {}", whole.display())).done();
        assert_same_file(&output, &whole);
        let left: Vec<_> =
            fs::read_dir(place.at("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().contains("partial")), "{left:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_was_killed_goes_on_and_shows_nothing_half_done() {
    let gcs = require!(FakeGcs::start().await);
    let workshop = Workshop::new(&gcs, &gcs.endpoint(), &ModelShape::demo(), SLOW).await;
    let (place, volume) = (&workshop.place, workshop.place.at("volume"));
    let line = format!("export --to {} {SOURCE}", volume.display());
    for _ in 0..3 {
        let mut export = place.embedded(&line);
        let mut export = Running::start(export.stdout(Stdio::null()).stderr(Stdio::null()));
        sleep(Duration::from_millis(1500)).await;
        assert_eq!(export.kill(), None);
        let shown = fs::read_dir(volume.join("snapshots")).into_iter().flatten();
        let shown: Vec<_> = shown.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        assert!(shown.iter().all(|name| name.ends_with(".loading.json")), "{shown:?}");
    }
    place.run(&line).done();
    // Another beside it.
    place.run(&format!("export --to {} {ODD}", volume.display())).done();
    let (demo, _) = snapshots(&volume);
    assert_same_model(&workshop.demo.directory, &demo);
}
