//! Directories and disks that cannot be, or can no longer be, a store.

use std::fs;

use weightd_harness::{FakeGcs, SmallDisk, require};

use super::{KEPT, assert_kept, with_kept};
use crate::place::Place;

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_a_newer_format_is_left_alone() {
    let gcs = require!(FakeGcs::start().await);
    let place = with_kept(&gcs).await;
    let format = place.at("store/format");
    let ours = fs::read(&format).unwrap();
    fs::write(&format, "weightd-store 99\n").unwrap();
    place.run("ls").failed(64, &["format 99", "newer weightd", place.at("store").to_str().unwrap()]);
    place.run("gc --partials").failed(64, &["format 99"]);
    assert_eq!(fs::read(&format).unwrap(), b"weightd-store 99\n");
    fs::write(&format, ours).unwrap();
    assert_kept(&place);
}

#[test]
fn a_directory_with_other_things_in_it_is_left_alone() {
    let place = Place::new("");
    fs::create_dir(place.at("store")).unwrap();
    fs::write(place.at("store/thesis.tex"), "years").unwrap();
    place.run("gc --partials").failed(64, &["not a weightd store", "empty"]);
    assert_eq!(fs::read_dir(place.at("store")).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_keeps_what_is_whole_and_goes_on_when_there_is_room() {
    const FETCH: &str = "[fetch]\nattempts = 2";
    let gcs = require!(FakeGcs::start().await);
    let place = with_kept(&gcs).await;
    let Some(disk) = SmallDisk::mount(&place.at(""), 64 << 20) else { return };
    let store = disk.path().join("store");
    place.configure(&store, FETCH);
    place.run(&format!("prefetch {KEPT} --pin")).done();
    gcs.upload("models", "big/tokenizer.bin", vec![1; 80 << 20]).await.unwrap();
    place
        .run("prefetch gs://models/big")
        .failed(74, &["80.00 MiB needed", "weightctl rm", store.to_str().unwrap()]);
    assert_kept(&place);
    // There is room when it begins, and someone else takes it.
    gcs.upload("models", "fits/tokenizer.bin", vec![2; 24 << 20]).await.unwrap();
    let filler = disk.path().join("filler");
    fs::write(&filler, vec![1; 64 << 20]).unwrap_err();
    place.run("prefetch gs://models/fits").failed(74, &[disk.path().to_str().unwrap()]);
    fs::remove_file(&filler).unwrap();
    assert_kept(&place);
    place.run("prefetch gs://models/fits").done();
    let brought = fs::read(place.path("gs://models/fits").join("tokenizer.bin")).unwrap();
    assert_eq!(brought, vec![2; 24 << 20]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_store_is_told_as_such() {
    let gcs = require!(FakeGcs::start().await);
    let place = with_kept(&gcs).await;
    let Some(disk) = SmallDisk::mount(&place.at(""), 64 << 20) else { return };
    let store = disk.path().join("store");
    place.configure(&store, "");
    place.run(&format!("prefetch {KEPT}")).done();
    disk.make_read_only().unwrap();
    place.run(&format!("prefetch {KEPT}")).failed(74, &["read-only", "read-write", store.to_str().unwrap()]);
}
