//! What goes wrong while an image is built.

use std::{fs, process::Stdio, time::Duration};

use tokio::time::sleep;
use weightd_harness::{FakeGcs, Fault, FaultProxy, ModelShape, SmallDisk, require};

use super::{SOURCE, Workshop, assert_same_file};
use crate::{
    place::Place,
    program::{Running, until},
};

const SLOW: &str = "[fetch]\nbandwidth = \"40MiB/s\"";

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused_before_anything_is_fetched() {
    let place = Place::new("");
    let build = |more: &str| place.run(&format!("image build {more}"));
    build("--model file:///nowhere --output disk.img").failed(64, &["disk.img", ".raw", ".tar.gz"]);
    build("--model file:///nowhere --output s3://b/disk.tar.gz").failed(64, &["gs://bucket/name.tar.gz"]);
    build("--model file:///nowhere --output gs://b/disk.raw").failed(64, &[".tar.gz"]);
    build("--model file:///nowhere --output disk.raw --size 1500MB").failed(64, &["whole GiB"]);
    build("--model file:///nowhere --output disk.raw --label 01234567890123456").failed(64, &["16 bytes"]);
    let into = place.at("dir.raw");
    fs::create_dir(&into).unwrap();
    build(&format!("--model file:///nowhere --output {}", into.display())).failed(64, &["a directory"]);
    let words = build(&format!("--model file:///nowhere --output {}", place.at("disk.raw").display()));
    words.failed(66, &["/nowhere"]);
    build("--output disk.raw").failed(64, &["--model"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_too_small_says_how_large_it_must_be() {
    let gcs = require!(FakeGcs::start().await);
    let shape = ModelShape { hidden: 2048, layers: 12, ..ModelShape::demo() };
    let workshop = Workshop::new(&gcs, &gcs.endpoint(), &shape, "").await;
    let output = workshop.place.at("disk.raw");
    let line = format!("image build --model {SOURCE} --output {} --size", output.display());
    let size = workshop.demo.file_bytes().unwrap();
    assert!(size > 1 << 30, "{size}");
    workshop
        .place
        .run(&format!("{line} 1GiB"))
        .failed(64, &["needs", "--size 2GiB"].map(|words| words.trim_start_matches("needs")));
    assert!(!output.exists());
    workshop.place.run(&format!("{line} 3GiB")).done();
    assert_eq!(fs::metadata(&output).unwrap().len(), 3 << 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_builds_to_one_output_do_not_meet() {
    let gcs = require!(FakeGcs::start().await);
    let workshop = Workshop::new(&gcs, &gcs.endpoint(), &ModelShape::demo(), SLOW).await;
    let (place, output) = (&workshop.place, workshop.place.at("disk.raw"));
    let line = format!("image build --model {SOURCE} --output {}", output.display());
    let mut first = place.embedded(&line);
    let mut first = Running::start(first.stdout(Stdio::null()).stderr(Stdio::null()));
    let partial = place.at("disk.raw.partial");
    until("the first build writes", async || partial.exists().then_some(())).await;
    sleep(Duration::from_millis(200)).await;
    place.run(&line).failed(75, &["disk.raw", "another build"]);
    assert_eq!(first.ended().await, Some(0));
    place.run(&format!("image verify {}", output.display())).done();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_changes_ends_a_build_and_the_next_one_has_what_is_there() {
    let gcs = require!(FakeGcs::start().await);
    let workshop = Workshop::new(&gcs, &gcs.endpoint(), &ModelShape::demo(), SLOW).await;
    let (place, output) = (&workshop.place, workshop.place.at("disk.raw"));
    let line = format!("image build --model {SOURCE} --output {}", output.display());
    let shard = workshop.demo.files.iter().rfind(|name| name.ends_with(".safetensors")).unwrap();
    let build = place.embedded(&line).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let partial = place.at("disk.raw.partial");
    until("the build writes", async || partial.exists().then_some(())).await;
    sleep(Duration::from_millis(500)).await;
    let bytes = fs::read(workshop.demo.directory.join(shard)).unwrap();
    gcs.upload("models", &format!("demo/{shard}"), bytes).await.unwrap();
    let ended = crate::program::Ended::from(build.wait_with_output().unwrap());
    ended.failed(75, &[shard, "overwritten"]);
    assert!(!output.exists());
    place.run(&line).done();
    let whole = place.at("whole.raw");
    place.run(&format!("image build --model {SOURCE} --output {}", whole.display())).done();
    assert_same_file(&output, &whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_came_with_wrong_bytes_is_fetched_again_and_no_other() {
    let gcs = require!(FakeGcs::start().await);
    let proxy = FaultProxy::start(&gcs.endpoint()).await.unwrap();
    let workshop = Workshop::new(&gcs, &proxy.url(), &ModelShape::demo(), "").await;
    let place = &workshop.place;
    let shard = workshop.demo.files.iter().rfind(|name| name.ends_with(".safetensors")).unwrap();
    let (size, shard_bytes) = (
        workshop.demo.file_bytes().unwrap(),
        fs::metadata(workshop.demo.directory.join(shard)).unwrap().len(),
    );
    for name in ["disk.raw", "disk.tar.gz"] {
        let output = place.at(name);
        let line = format!("image build --model {SOURCE} --output {}", output.display());
        proxy.inject(shard, 1, Fault::Flip(1 << 20));
        let before = proxy.bytes();
        place.run(&line).done();
        let fetched = proxy.bytes() - before;
        assert!(fetched < size + shard_bytes + (8 << 20), "{fetched} bytes for {size}, {shard_bytes} twice");
        let whole = place.at(&format!("whole.{name}"));
        place.run(&format!("image build --model {SOURCE} --output {}", whole.display())).done();
        assert_same_file(&output, &whole);
        fs::remove_file(&whole).unwrap();
        // What is wrong at its origin is not tried for ever.
        proxy.inject(shard, u32::MAX, Fault::Flip(1 << 20));
        place.run(&line.replace("disk", "wrong")).failed(65, &[shard, "fetched 3 times"]);
        assert!(!place.at(&name.replace("disk", "wrong")).exists());
        proxy.clear();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_named_and_nothing_is_lost() {
    let gcs = require!(FakeGcs::start().await);
    let workshop = Workshop::new(&gcs, &gcs.endpoint(), &ModelShape::demo(), "").await;
    let place = &workshop.place;
    let Some(disk) = SmallDisk::mount(&place.at(""), 96 << 20) else { return };
    for name in ["disk.raw", "disk.tar.gz"] {
        let output = disk.path().join(name);
        let line = format!("image build --model {SOURCE} --output {}", output.display());
        place.run(&line).failed(74, &[name, "no room"]);
        assert!(!output.exists());
        fs::remove_file(disk.path().join(format!("{name}.partial"))).unwrap();
    }
    let export = place.run(&format!("export --to {} {SOURCE}", disk.path().join("volume").display()));
    export.failed(74, &["volume", "needed"]);
}
