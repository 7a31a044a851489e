//! The bucket server with a process of its own.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{fs, path::Path, time::Duration};

use weightd_harness::{BucketOptions, BucketProcess, Placed, Shape, Unready};

fn options(directory: &Path) -> BucketOptions {
    let placed =
        Placed { bucket: "models".to_owned(), prefix: "demo".to_owned(), directory: directory.to_owned() };
    BucketOptions { place: vec![placed], ..BucketOptions::default() }
}

fn client(process: &BucketProcess) -> reqwest::Client {
    let builder = reqwest::Client::builder().no_proxy();
    let Some(ca) = process.ca_file() else { return builder.build().unwrap() };
    builder.tls_certs_only([reqwest::Certificate::from_pem(&fs::read(ca).unwrap()).unwrap()]).build().unwrap()
}

#[tokio::test]
async fn it_serves_what_was_placed_counts_and_ends() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("w"), "0123456789").unwrap();
    let certificates = tempfile::tempdir().unwrap();
    let shape = Shape { first_byte: Duration::from_millis(1), per_host: Some(1 << 30), ..Shape::default() };
    let tls = BucketOptions { tls: Some(certificates.path().to_owned()), shape, ..options(directory.path()) };
    for options in [options(directory.path()), tls] {
        let process = BucketProcess::start(&options).await.unwrap();
        let url = format!("{}/models/demo/w", process.endpoint());
        let client = client(&process);
        assert_eq!(client.get(&url).send().await.unwrap().text().await.unwrap(), "0123456789");
        assert_eq!(process.bytes_sent().await.unwrap(), 10);
        assert_eq!(process.request_count().await.unwrap(), 1);
        let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
        assert!(status.starts_with("Name:\ttest-bucket\n"), "{status}");
        drop(process);
        assert!(client.get(&url).send().await.is_err());
    }
}

#[tokio::test]
async fn what_cannot_be_placed_is_said() {
    let nowhere = Path::new("/nowhere/at/all");
    let error = BucketProcess::start(&options(nowhere)).await.unwrap_err();
    assert!(matches!(error, Unready::Failed { .. }));
    assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
}
