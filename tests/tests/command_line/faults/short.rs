//! Objects that end before their listed length.

use std::{
    fs::{self, File},
    process::Stdio,
    time::Duration,
};

use weightd_harness::{FakeGcs, Fault, FaultProxy, require};

use super::{assert_kept, with_kept};
use crate::program::{Ended, until};

const URL: &str = "gs://models/short/tokenizer.bin";

#[tokio::test(flavor = "multi_thread")]
async fn an_object_whose_end_is_gone_is_named_and_nothing_of_it_is_complete() {
    let gcs = require!(FakeGcs::start().await);
    let proxy = FaultProxy::start(&gcs.endpoint()).await.unwrap();
    let place = with_kept(&gcs).await.gcs(&proxy.url());
    let directory = place.at("short");
    fs::create_dir(&directory).unwrap();
    let file = directory.join("tokenizer.bin");
    fs::write(&file, vec![5; 20 << 20]).unwrap();
    gcs.place_directory("models", "short", &directory).unwrap();

    // The listing is right; the file loses its end before its data is asked for, and keeps its generation.
    proxy.inject("alt=media", 1_000, Fault::Delay(Duration::from_secs(2)));
    let mut prefetch = place.embedded("prefetch gs://models/short");
    let child = prefetch.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    until("the data is asked for", async || {
        proxy.requests().all().iter().any(|request| request.target.contains("alt=media")).then_some(())
    })
    .await;
    File::options().write(true).open(&file).unwrap().set_len(9_000_000).unwrap();
    let ended: Ended = child.wait_with_output().unwrap().into();
    ended.failed(75, &[URL, "run the command again"]);
    place.run("path gs://models/short").failed(75, &["weightctl prefetch"]);
    assert_kept(&place);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_always_breaks_off_is_named_and_comes_when_it_no_longer_does() {
    let gcs = require!(FakeGcs::start().await);
    let proxy = FaultProxy::start(&gcs.endpoint()).await.unwrap();
    let place = with_kept(&gcs).await.gcs(&proxy.url());
    gcs.upload("models", "short/tokenizer.bin", vec![5; 20 << 20]).await.unwrap();
    proxy.inject("alt=media", 1, Fault::ResetAfter(9_000_000));
    proxy.inject("alt=media", 1_000, Fault::ResetAfter(0));
    let told = [URL, "after 2 attempts", "same command", "what has arrived is kept"];
    place.run("prefetch gs://models/short").failed(69, &told);
    place.run("path gs://models/short").failed(75, &["weightctl prefetch"]);
    proxy.clear();
    place.run("prefetch gs://models/short").done();
    let brought = fs::read(place.path("gs://models/short").join("tokenizer.bin")).unwrap();
    assert_eq!(brought, vec![5; 20 << 20]);
    assert_kept(&place);
}
