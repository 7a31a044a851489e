//! Bytes that change on disk.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
};

use weightd_harness::{FakeGcs, require};

use super::{KEPT, assert_kept, with_kept};
use crate::place::number;

/// One wrong byte in a file that nobody may write.
fn rot(file: &Path) {
    fs::set_permissions(file, fs::Permissions::from_mode(0o644)).unwrap();
    OpenOptions::new().write(true).open(file).unwrap().write_all_at(&[8], 8_500_000).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o444)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rot_is_found_reported_and_repaired_from_the_origin() {
    let gcs = require!(FakeGcs::start().await);
    let place = with_kept(&gcs).await;
    let file = place.path(KEPT).join("tokenizer.bin");
    rot(&file);
    let report = place.run("verify --no-repair -o json");
    assert_eq!(report.code, Some(65));
    assert!(report.words.contains("1 chunks are bad") && report.words.contains("without --no-repair"));
    let report: serde_json::Value = serde_json::from_str(&report.data).unwrap();
    assert_eq!((number(&report, "bad_chunks"), number(&report, "repaired_chunks")), (1, 0));
    assert_eq!(report["bad"][0]["path"], "tokenizer.bin", "{report}");
    // What is known to be bad is not handed out, and not forgotten either.
    place.run(&format!("path {KEPT}")).failed(75, &["weightctl prefetch"]);
    assert_eq!(place.run("verify --no-repair").code, Some(65));
    let repaired = place.run("verify");
    assert!(repaired.words.contains("1 bad chunks, all fetched again"), "{}", repaired.words);
    repaired.done();
    assert_kept(&place);

    rot(&place.path(KEPT).join("tokenizer.bin"));
    let repaired = place.run(&format!("verify {KEPT}"));
    assert!(repaired.words.contains("1 bad chunks, all fetched again"), "{}", repaired.words);
    assert!(repaired.done().contains("tokenizer.bin"));
    assert_kept(&place);
}

#[tokio::test(flavor = "multi_thread")]
async fn rot_that_no_origin_can_repair_is_reported() {
    let gcs = require!(FakeGcs::start().await);
    let place = with_kept(&gcs).await;
    rot(&place.path(KEPT).join("tokenizer.bin"));
    gcs.delete("models", "kept/tokenizer.bin").await.unwrap();
    let ended = place.run("verify");
    assert!(ended.data.contains("tokenizer.bin"), "{}", ended.data);
    ended.failed(65, &["1 chunks are bad"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rot_is_reported_when_the_origin_is_away() {
    let gcs = require!(FakeGcs::start().await);
    let place = with_kept(&gcs).await;
    rot(&place.path(KEPT).join("tokenizer.bin"));
    drop(gcs);
    let ended = place.run("verify");
    assert!(ended.data.contains("tokenizer.bin"), "{}", ended.data);
    ended.failed(65, &["1 chunks are bad"]);
}
