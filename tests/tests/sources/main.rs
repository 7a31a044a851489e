//! Sources against real servers: the conformance suite, and what only one kind of origin does.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod cloud_storage;
mod endless;
mod fixtures;
mod hub;
mod odd_names;
mod profiles;
mod web;
mod writing;

use weightd_harness::{AzureServer, BucketServer, FakeGcs, HubServer, S3Server, WebDavServer, require};
use weightd_source::conformance;

#[tokio::test]
async fn fake_gcs_server_conforms() {
    let server = require!(FakeGcs::start().await);
    conformance::run(&fixtures::Gcs::new(server).await).await;
}

#[tokio::test]
async fn the_bucket_server_conforms() {
    let server = BucketServer::start().await.unwrap();
    conformance::run(&fixtures::Bucket::new(server).await).await;
}

#[tokio::test]
async fn moto_conforms() {
    let server = require!(S3Server::start().await);
    conformance::run(&fixtures::S3::new(server).await).await;
}

#[tokio::test]
async fn azurite_conforms() {
    let server = require!(AzureServer::start().await);
    conformance::run(&fixtures::Azure::new(server).await).await;
}

#[tokio::test]
async fn a_webdav_server_conforms() {
    let server = require!(WebDavServer::start().await);
    conformance::run(&fixtures::WebDav::new(server)).await;
}

#[tokio::test]
async fn the_hub_conforms() {
    conformance::run(&fixtures::Hub::new(HubServer::start().await.unwrap())).await;
}
