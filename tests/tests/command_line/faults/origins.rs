//! Origins that say no, or nothing.

use weightd_harness::{FakeGcs, Fault, FaultProxy, HubServer, Repository, require, unused_port};

use super::{KEPT, assert_kept, with_kept};
use crate::place::Place;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_named() {
    let gcs = require!(FakeGcs::start().await);
    let place = with_kept(&gcs).await;
    place.run("prefetch gs://nowhere/model").failed(66, &["gs://nowhere"]);
    place.run("prefetch gs://models/nothing").failed(66, &["gs://models/nothing", "check the prefix"]);
    place
        .run("prefetch gs://models/kept/config.json")
        .failed(66, &["gs://models/kept --include 'config.json'"]);
    place.run(&format!("prefetch {KEPT} --include *.none")).failed(66, &[KEPT]);
    gcs.create_bucket("empty").await.unwrap();
    place.run("prefetch gs://empty").failed(66, &["gs://empty", "empty"]);
    place.run("path gs://models/nothing").failed(66, &["gs://models/nothing", "weightctl prefetch"]);
    assert_kept(&place);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_cannot_be_reached_is_named() {
    let gcs = require!(FakeGcs::start().await);
    let away = format!("http://127.0.0.1:{}", unused_port().unwrap());
    let place = with_kept(&gcs).await.gcs(&away).env("AWS_ENDPOINT_URL", &away);
    place.run(&format!("prefetch {KEPT}")).failed(69, &[KEPT, "same command"]);
    place.run(&format!("prefetch {away}/model")).failed(69, &[&away]);
    assert_kept(&place);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_read_is_told_so() {
    let gcs = require!(FakeGcs::start().await);
    let proxy = FaultProxy::start(&gcs.endpoint()).await.unwrap();
    let place = with_kept(&gcs).await.gcs(&proxy.url());
    for code in [401, 403] {
        proxy.inject("/o", 1_000, Fault::Status { code, retry_after: None });
        place.run(&format!("prefetch {KEPT}")).failed(77, &[KEPT]);
        proxy.clear();
    }
    assert_kept(&place);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_expires_while_weights_load_is_told_with_the_way_to_a_new_one() {
    let gcs = require!(FakeGcs::start().await);
    let proxy = FaultProxy::start(&gcs.endpoint()).await.unwrap();
    let place = with_kept(&gcs).await.gcs(&proxy.url());
    gcs.upload("models", "new/tokenizer.bin", vec![5; 20 << 20]).await.unwrap();
    let expired = Fault::Status { code: 401, retry_after: None };
    proxy.inject("alt=media", 1, Fault::ResetAfter(1 << 20));
    proxy.inject("alt=media", 1_000, expired);
    let told = ["gs://models/new/tokenizer.bin", "has expired", "gcloud auth application-default login"];
    place.run("prefetch gs://models/new").failed(77, &told);
    place.run("path gs://models/new").failed(75, &["weightctl prefetch"]);
    proxy.clear();
    place.run("prefetch gs://models/new").done();
    assert_kept(&place);

    let hub = HubServer::start().await.unwrap();
    let files = Repository::new().large_file("a.safetensors", super::safetensors("{}", 0));
    hub.push("org/secret", files.large_file("tokenizer.model", vec![5; 9 << 20]).private());
    hub.grant("good", &["org/secret"]);
    let proxy = FaultProxy::start(&hub.endpoint()).await.unwrap();
    let place = place.env("HF_ENDPOINT", proxy.url()).env("HF_TOKEN", "good");
    proxy.inject("tokenizer.model", 1_000, expired);
    let told = ["hf://org/secret/tokenizer.model", "has expired", "set HF_TOKEN to a new one"];
    place.run("prefetch hf://org/secret").failed(77, &told);
    place.run("path hf://org/secret").failed(75, &["weightctl prefetch"]);
    proxy.clear();
    place.run("prefetch hf://org/secret").done();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gated_repository_asks_for_a_token() {
    let hub = HubServer::start().await.unwrap();
    hub.push("org/gated", Repository::new().file("config.json", "{}").gated());
    let place = Place::new("").env("HF_ENDPOINT", hub.endpoint());
    place.run("prefetch hf://org/gated").failed(77, &["hf://org/gated", "HF_TOKEN"]);
    hub.grant("good", &["org/gated"]);
    let place = place.env("HF_TOKEN", "bad");
    place.run("prefetch hf://org/gated").failed(77, &["hf://org/gated"]);
    let place = place.env("HF_TOKEN", "good");
    place.run("prefetch hf://org/gated").done();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_that_is_flipped_on_the_way_is_fetched_again_or_refused() {
    let gcs = require!(FakeGcs::start().await);
    let proxy = FaultProxy::start(&gcs.endpoint()).await.unwrap();
    let place = with_kept(&gcs).await.gcs(&proxy.url());
    gcs.upload("models", "new/tokenizer.bin", vec![5; 9 << 20]).await.unwrap();
    proxy.inject("alt=media", 1_000, Fault::Flip(8_400_000));
    let told = ["gs://models/new/tokenizer.bin", "nothing of it was kept"];
    place.run("prefetch gs://models/new").failed(65, &told);
    place.run("path gs://models/new").failed(75, &["weightctl prefetch"]);
    proxy.clear();
    proxy.inject("alt=media", 1, Fault::Flip(8_400_000));
    place.run("prefetch gs://models/new").done();
    let brought = std::fs::read(place.path("gs://models/new").join("tokenizer.bin")).unwrap();
    assert_eq!(brought, vec![5; 9 << 20]);
    assert_kept(&place);
}
