//! Servers whose listings never end.

use std::sync::Arc;

use weightd_harness::{Scripted, ScriptedServer};
use weightd_source::{Config, Opener, Origins, S3Config, SourceError};

use crate::fixtures::{gcs_origins, hub_origins, origins, uri};

fn s3_origins(endpoint: &str) -> Arc<Origins> {
    let s3 = S3Config {
        endpoint: Some(endpoint.to_owned()),
        anonymous: Some(true),
        region: Some("us-east-1".to_owned()),
    };
    origins(&Config { s3, ..Config::default() }, &[])
}

async fn refused(origins: &Origins, text: &str) -> SourceError {
    origins.open(&uri(text)).await.unwrap().list().await.unwrap_err()
}

#[track_caller]
fn assert_says(error: &SourceError, source: &str, words: &str) {
    let text = error.to_string();
    assert!(error.kind() == "protocol" && text.contains(source) && text.contains(words), "{text}");
    assert!(!error.is_retryable());
}

/// A hub that gives a commit, and for its tree what `tree` says of the query.
async fn hub(tree: impl Fn(&str) -> Scripted + Send + Sync + 'static) -> ScriptedServer {
    let revision = format!(r#"{{"sha":"{}"}}"#, "a".repeat(40));
    let answer = move |target: &str| match target.contains("/tree/") {
        true => tree(target),
        false => Scripted { body: revision.clone(), ..Scripted::default() },
    };
    ScriptedServer::start(answer).await.unwrap()
}

#[tokio::test]
async fn a_page_without_end_is_refused() {
    let endless = Scripted { body: "[".to_owned(), endless: true, link: None };
    let answer = endless.clone();
    let server = hub(move |_| answer.clone()).await;
    let error = refused(&hub_origins(&server.url(), None), "hf://o/n").await;
    assert_says(&error, "hf://o/n", &format!("{}/api/models/o/n/tree/", server.url()));
    assert_says(&error, "hf://o/n", "longer than 64 MiB");
    let server = ScriptedServer::start(move |_| endless.clone()).await.unwrap();
    let error = refused(&gcs_origins(&server.url()), "gs://b/m").await;
    assert_says(&error, "gs://b/m", "longer than 64 MiB");
    let error = refused(&s3_origins(&server.url()), "s3://b/m").await;
    assert_says(&error, "s3://b/m", "longer than 64 MiB");
}

#[tokio::test]
async fn pages_that_name_each_other_are_refused() {
    // Empty pages, of which the second names the first.
    let other = |target: &str| if target.contains("one") { "two" } else { "one" };
    let server = hub(move |target| {
        let link = format!("</api/models/o/n/tree/x?cursor={}>; rel=\"next\"", other(target));
        Scripted { body: "[]".to_owned(), endless: false, link: Some(link) }
    });
    let error = refused(&hub_origins(&server.await.url(), None), "hf://o/n").await;
    assert_says(&error, "hf://o/n", "the listing repeats itself");

    let server = ScriptedServer::start(move |target| {
        let body = format!(r#"{{"nextPageToken":"{}"}}"#, other(target));
        Scripted { body, ..Scripted::default() }
    });
    let error = refused(&gcs_origins(&server.await.unwrap().url()), "gs://b/m").await;
    assert_says(&error, "gs://b/m", "the listing repeats itself");

    let server = ScriptedServer::start(move |target| {
        let next = format!("<NextContinuationToken>{}</NextContinuationToken>", other(target));
        let body = format!("<ListBucketResult><IsTruncated>true</IsTruncated>{next}</ListBucketResult>");
        Scripted { body, ..Scripted::default() }
    });
    let error = refused(&s3_origins(&server.await.unwrap().url()), "s3://b/m").await;
    assert_says(&error, "s3://b/m", "the listing repeats itself");
}
