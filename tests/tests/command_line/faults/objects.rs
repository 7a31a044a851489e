//! Objects that are not what they should be.

use std::fs;

use weightd_harness::{
    FakeGcs, Fault, FaultProxy, HubServer, Model, ModelShape, Repository, Upload, assert_same_tensors,
    require,
};

use super::{KEPT, assert_kept, safetensors, with_kept};
use crate::place::Place;

#[tokio::test(flavor = "multi_thread")]
async fn a_safetensors_file_that_is_none_is_refused_by_name() {
    let gcs = require!(FakeGcs::start().await);
    let place = with_kept(&gcs).await;
    let tensor =
        |begin: u64, end: u64| format!("{{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[{begin},{end}]}}");
    let two = |a, b| format!("{{\"a\":{a},\"b\":{b}}}");
    let mut endless = (1_u64 << 63).to_le_bytes().to_vec();
    endless.extend([b' '; 64]);
    let cases = [
        ("endless", endless),
        ("overlapping", safetensors(&two(tensor(0, 8), tensor(4, 12)), 12)),
        ("outside", safetensors(&two(tensor(0, 8), tensor(8, 1 << 40)), 16)),
        ("truncated", safetensors(&two(tensor(0, 8), tensor(8, 16)), 15)),
        ("no-json", safetensors("{{{{{{{{", 16)),
        ("short", vec![1, 2, 3]),
        ("empty", vec![]),
    ];
    for (name, bytes) in cases {
        let object = format!("{name}/model.safetensors");
        gcs.upload("models", &object, bytes).await.unwrap();
        let ended = place.run(&format!("prefetch gs://models/{name}"));
        ended.failed(65, &[&format!("gs://models/{object}"), "upload the object again"]);
        place.run(&format!("path gs://models/{name}")).failed(75, &[]);
    }
    assert_kept(&place);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_is_missing_or_too_short_is_named() {
    let gcs = require!(FakeGcs::start().await);
    let place = with_kept(&gcs).await;
    let model = Model::write(&place.at("model"), &ModelShape::tiny()).unwrap();
    for prefix in ["less", "short"] {
        gcs.place_directory("models", prefix, &model.directory).unwrap();
    }
    let shard = &model.files[1];
    gcs.delete("models", &format!("less/{shard}")).await.unwrap();
    place
        .run("prefetch gs://models/less")
        .failed(65, &["gs://models/less/model.safetensors.index.json", shard]);
    let mut bytes = fs::read(model.directory.join(shard)).unwrap();
    bytes.truncate(bytes.len() - 1);
    gcs.upload("models", &format!("short/{shard}"), bytes).await.unwrap();
    place.run("prefetch gs://models/short").failed(65, &[&format!("gs://models/short/{shard}")]);
    gcs.place_directory("models", "less", &model.directory).unwrap();
    place.run("prefetch gs://models/less").done();
    assert_same_tensors(&model.directory, &place.path("gs://models/less"));
    assert_kept(&place);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_stored_compressed_is_refused_by_name() {
    let gcs = require!(FakeGcs::start_in_memory().await);
    let place = with_kept(&gcs).await;
    let gzip = Upload { content_encoding: Some("gzip"), ..Upload::default() };
    gcs.upload_with("models", "packed/config.json", vec![0x1f, 0x8b, 8, 0], gzip).await.unwrap();
    place
        .run("prefetch gs://models/packed")
        .failed(64, &["gs://models/packed/config.json", "gzip", "--exclude"]);
    assert_kept(&place);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_leave_the_directory_or_are_no_names_are_refused() {
    let gcs = require!(FakeGcs::start_in_memory().await);
    let place = with_kept(&gcs).await;
    let long = "n".repeat(1024 - "long/".len());
    let cases = [
        ("dots", "../../../evil", "evil"),
        ("line", "a\nb", "a"),
        ("slash", "/etc/evil", "evil"),
        ("long", long.as_str(), "nnnnnnnn"),
    ];
    for (prefix, name, told) in cases {
        gcs.upload("models", &format!("{prefix}/{name}"), "x").await.unwrap();
        let told = [told, "--exclude"];
        let words = place.run(&format!("prefetch gs://models/{prefix}")).failed(64, &told);
        assert!(words.lines().count() <= 2, "a name cannot break a message: {words}");
    }
    assert!(!place.at("evil").exists() && !place.at("store/evil").exists());
    assert_kept(&place);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_fetched_beside_a_name_with_a_control_character() {
    let gcs = require!(FakeGcs::start_in_memory().await);
    let gcs_proxy = FaultProxy::start(&gcs.endpoint()).await.unwrap();
    let hub = HubServer::start().await.unwrap();
    let hub_proxy = FaultProxy::start(&hub.endpoint()).await.unwrap();
    let place = with_kept(&gcs).await.gcs(&gcs_proxy.url()).env("HF_ENDPOINT", hub_proxy.url());
    for (prefix, name, shown) in [("nul", "a\0b", r#""a\0b""#), ("line", "a\nb", r#""a\nb""#)] {
        gcs.upload("models", &format!("{prefix}/{name}"), "x").await.unwrap();
        gcs.upload("models", &format!("{prefix}/config.json"), "{}").await.unwrap();
        hub.push(&format!("org/{prefix}"), Repository::new().file(name, "x").file("config.json", "{}"));
        for source in [format!("gs://models/{prefix}"), format!("hf://org/{prefix}")] {
            let told = [source.as_str(), shown, "has a control character", "--exclude"];
            let words = place.run(&format!("prefetch {source}")).failed(64, &told);
            assert!(!words.contains('\0') && words.lines().count() <= 2, "{words:?}");
            place.run(&format!("path {source}")).failed(66, &["weightctl prefetch"]);
        }
        let asked = [gcs_proxy.requests().all(), hub_proxy.requests().all()].concat();
        let data = |target: &str| target.contains("alt=media") || target.contains("/resolve");
        assert!(!asked.iter().any(|request| data(&request.target)), "{asked:?}");
    }
    for source in ["gs://models/nul", "hf://org/nul", "gs://models/line", "hf://org/line"] {
        place.run(&format!("prefetch {source} --exclude a?b")).done();
    }
    assert_kept(&place);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_object_is_a_file_like_any_other() {
    let gcs = require!(FakeGcs::start().await);
    let place = with_kept(&gcs).await;
    gcs.upload("models", "zero/config.json", "").await.unwrap();
    gcs.upload("models", "zero/deep/é x.txt", "1").await.unwrap();
    place.run("prefetch gs://models/zero").done();
    let directory = place.path("gs://models/zero");
    assert_eq!(fs::read(directory.join("config.json")).unwrap(), b"");
    assert_eq!(fs::read(directory.join("deep/é x.txt")).unwrap(), b"1");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_overwritten_while_it_is_fetched_is_never_mixed() {
    let gcs = require!(FakeGcs::start().await);
    let proxy = FaultProxy::start(&gcs.endpoint()).await.unwrap();
    let place = with_kept(&gcs).await.gcs(&proxy.url());
    // The second listing is right, and the object changes before its data is asked for.
    gcs.upload("models", "kept/tokenizer.bin", vec![8; 40 << 20]).await.unwrap();
    proxy.limit(16 << 20);
    let mut prefetch = place.embedded(&format!("prefetch {KEPT}"));
    let prefetch = prefetch.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
    let child = prefetch.spawn().unwrap();
    crate::program::until("the data is asked for", async || {
        let requests = proxy.requests().all();
        let data = requests.iter().filter(|request| request.target.contains("tokenizer.bin")).count();
        (data > 0).then_some(())
    })
    .await;
    gcs.upload("models", "kept/tokenizer.bin", vec![9; 40 << 20]).await.unwrap();
    // What was under way may have come to its end; anything after it must not be taken.
    proxy.inject("tokenizer.bin", 1, Fault::ResetAfter(1 << 20));
    proxy.limit(0);
    let ended: crate::program::Ended = child.wait_with_output().unwrap().into();
    let brought = |place: &Place| fs::read(place.path(KEPT).join("tokenizer.bin")).unwrap();
    if ended.code == Some(0) {
        assert_eq!(brought(&place), vec![8; 40 << 20]);
    } else {
        ended.failed(75, &["gs://models/kept/tokenizer.bin"]);
        assert_eq!(brought(&place), vec![7; 9 << 20], "the old snapshot is what there is");
    }
    place.run(&format!("prefetch {KEPT}")).done();
    assert_eq!(brought(&place), vec![9; 40 << 20]);
    place.run("verify --no-repair").done();
}
