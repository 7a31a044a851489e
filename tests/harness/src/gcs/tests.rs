use std::fs;

use super::*;
use crate::require;

#[tokio::test]
async fn a_placed_object_is_what_an_upload_makes() {
    let gcs = require!(FakeGcs::start().await);
    gcs.create_bucket("demo").await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("sub")).unwrap();
    let file = directory.path().join("sub/weights.bin");
    fs::write(&file, b"some weights").unwrap();

    let uploaded = gcs.upload_file("demo", "a/sub/weights.bin", &file).await.unwrap();
    gcs.place_directory("demo", "b", directory.path()).unwrap();
    let placed = gcs.stat("demo", "b/sub/weights.bin").await.unwrap();
    assert_eq!((placed.size, &placed.crc32c), (uploaded.size, &uploaded.crc32c));
    assert!(placed.generation > 1_000_000);
    let url = "/download/storage/v1/b/demo/o/b%2Fsub%2Fweights.bin?alt=media";
    let answer = sent(gcs.request(Method::GET, url).header("range", "bytes=5-6")).await.unwrap();
    assert_eq!(answer.text().await.unwrap(), "we");
}

#[tokio::test]
async fn overwriting_a_placed_object_leaves_the_file_alone() {
    let gcs = require!(FakeGcs::start().await);
    gcs.create_bucket("demo").await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("weights.bin");
    fs::write(&file, b"first").unwrap();
    gcs.place_directory("demo", "m", directory.path()).unwrap();
    let before = gcs.stat("demo", "m/weights.bin").await.unwrap();
    let after = gcs.upload("demo", "m/weights.bin", "second one").await.unwrap();
    assert_ne!(before.generation, after.generation);
    assert_eq!(after.size, 10);
    assert_eq!(fs::read(&file).unwrap(), b"first");
}

#[tokio::test]
async fn clients_that_trust_the_certificate_get_in_over_tls() {
    let gcs = require!(FakeGcs::start_tls().await);
    gcs.create_bucket("demo").await.unwrap();
    gcs.upload("demo", "x", "y").await.unwrap();
    let url = format!("{}/storage/v1/b/demo/o/x?alt=media", gcs.endpoint());
    assert!(url.starts_with("https://127.0.0.1:"));
    let ca = reqwest::Certificate::from_pem(&fs::read(gcs.ca_file().unwrap()).unwrap()).unwrap();
    let client = Client::builder().no_proxy().tls_certs_only([ca]).build().unwrap();
    assert_eq!(client.get(&url).send().await.unwrap().text().await.unwrap(), "y");
    let stranger = Client::builder().no_proxy().build().unwrap();
    assert!(stranger.get(&url).send().await.is_err());
}

#[tokio::test]
async fn the_memory_backend_takes_names_that_no_file_can_have() {
    let gcs = require!(FakeGcs::start_in_memory().await);
    gcs.create_bucket("demo").await.unwrap();
    for name in ["m/../../etc/passwd", "/absolute", "line\nbreak", &"n".repeat(1024)] {
        gcs.upload("demo", name, "x").await.unwrap();
    }
    let kept =
        gcs.upload_with("demo", "z", "x", Upload { content_encoding: Some("gzip"), content_type: None });
    kept.await.unwrap();
    let listing = sent(gcs.request(Method::GET, "/storage/v1/b/demo/o")).await.unwrap().text().await.unwrap();
    assert!(listing.contains("m/../../etc/passwd") && listing.contains("line\\nbreak"), "{listing}");
    assert!(listing.contains(r#""contentEncoding":"gzip""#), "{listing}");
    gcs.delete("demo", "z").await.unwrap();
    assert!(gcs.stat("demo", "z").await.is_err());
}
