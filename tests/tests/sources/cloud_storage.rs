//! What only Cloud Storage does: transcoding, prefixes that are objects, TLS with an authority of its own.

use std::process::Command;

use futures::StreamExt;
use weightd_harness::{FakeGcs, Fault, FaultProxy, Upload, require};
use weightd_source::{Config, GcsConfig, Opener, resolve};
use weightd_types::{ByteRange, Selection};

use crate::fixtures::{gcs_origins, origins, uri};

#[tokio::test]
async fn transcoded_objects_are_refused_only_when_they_are_taken() {
    let server = require!(FakeGcs::start().await);
    server.create_bucket("models").await.unwrap();
    server.upload("models", "m/config.json", "{}").await.unwrap();
    let gzip = Upload { content_encoding: Some("gzip"), ..Upload::default() };
    server.upload_with("models", "m/notes.txt", "compressed", gzip).await.unwrap();
    let (origins, uri) = (gcs_origins(&server.endpoint()), uri("gs://models/m"));
    let source = origins.open(&uri).await.unwrap();
    let error = resolve(source.as_ref(), &uri, &Selection::default()).await.unwrap_err();
    let message = error.to_string();
    assert!(message.contains("gs://models/m/notes.txt") && message.contains("without -z"), "{message}");
    let selection = Selection { exclude: vec!["*.txt".to_owned()], ..Selection::default() };
    assert!(resolve(source.as_ref(), &uri, &selection).await.is_ok());
}

#[tokio::test]
async fn a_prefix_that_is_an_object_says_what_to_write() {
    let server = require!(FakeGcs::start().await);
    server.create_bucket("models").await.unwrap();
    server.upload("models", "m/a.safetensors", "x").await.unwrap();
    let source = gcs_origins(&server.endpoint()).open(&uri("gs://models/m/a.safetensors")).await.unwrap();
    let error = source.list().await.unwrap_err().to_string();
    assert!(error.contains("write gs://models/m --include 'a.safetensors'"), "{error}");
}

/// The library would retry by itself: that is not its work here.
#[tokio::test]
async fn one_request_is_one_request_and_retry_after_is_kept() {
    let server = require!(FakeGcs::start().await);
    server.create_bucket("models").await.unwrap();
    server.upload("models", "m/a.bin", vec![7; 1 << 20]).await.unwrap();
    let proxy = FaultProxy::start(&server.endpoint()).await.unwrap();
    let origins = gcs_origins(&proxy.url());
    let source = origins.open(&uri("gs://models/m")).await.unwrap();
    let listing = source.list().await.unwrap();
    let object = listing[0].object().unwrap();
    let before = proxy.requests().all().len();
    proxy.inject("a.bin", 1, Fault::Status { code: 429, retry_after: Some(7) });
    let error = source.read(object, ByteRange::new(0, 100)).await.err().unwrap();
    assert_eq!((error.kind(), error.retry_after().map(|wait| wait.as_secs())), ("throttled", Some(7)));
    proxy.inject("a.bin", 1, Fault::ResetAfter(1000));
    let stream = source.read(object, ByteRange::new(0, 1 << 20)).await.unwrap();
    let pieces: Vec<_> = stream.collect().await;
    let came: usize = pieces.iter().filter_map(|piece| Some(piece.as_ref().ok()?.len())).sum();
    assert_eq!(came, 1000);
    assert_eq!(pieces.last().unwrap().as_ref().unwrap_err().kind(), "interrupted");
    assert_eq!(proxy.requests().all().len(), before + 2);
}

#[tokio::test]
async fn the_project_that_pays_is_named_in_listings_and_reads() {
    let server = require!(FakeGcs::start().await);
    server.create_bucket("models").await.unwrap();
    server.upload("models", "m/a.bin", "weights").await.unwrap();
    let proxy = FaultProxy::start(&server.endpoint()).await.unwrap();
    let gcs = GcsConfig {
        endpoint: Some(proxy.url()),
        anonymous: Some(true),
        user_project: Some("payer".to_owned()),
    };
    let source = origins(&Config { gcs, ..Config::default() }, &[]);
    let source = source.open(&uri("gs://models/m")).await.unwrap();
    let listing = source.list().await.unwrap();
    drop(source.read(listing[0].object().unwrap(), ByteRange::new(0, 7)).await.unwrap());
    let requests = proxy.requests().all();
    assert_eq!(requests.len(), 2);
    assert!(requests.iter().all(|request| request.header("x-goog-user-project") == Some("payer")));
}

/// Runs the next test in a process of its own, because the authority comes from the environment.
#[tokio::test]
async fn an_authority_of_its_own_is_trusted_through_the_environment() {
    let server = require!(FakeGcs::start_tls().await);
    server.create_bucket("models").await.unwrap();
    server.upload("models", "m/a.bin", "weights").await.unwrap();
    let run = |authority: Option<&std::path::Path>| {
        let mut test = Command::new(std::env::current_exe().unwrap());
        test.args(["--exact", "cloud_storage::reads_over_tls", "--ignored"]);
        test.env("WEIGHTD_TEST_ENDPOINT", server.endpoint()).env_remove("SSL_CERT_FILE");
        if let Some(authority) = authority {
            test.env("SSL_CERT_FILE", authority);
        }
        test.output().unwrap().status.success()
    };
    assert!(run(server.ca_file()), "an authority in SSL_CERT_FILE is trusted");
    assert!(!run(None), "an unknown authority is not");
}

#[tokio::test]
#[ignore = "run by the test above"]
async fn reads_over_tls() {
    let origins = gcs_origins(&std::env::var("WEIGHTD_TEST_ENDPOINT").unwrap());
    let source = origins.open(&uri("gs://models/m")).await.unwrap();
    let listing = source.list().await.unwrap_or_else(|error| panic!("{error}"));
    let mut stream = source.read(listing[0].object().unwrap(), ByteRange::new(0, 7)).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), "weights");
}
