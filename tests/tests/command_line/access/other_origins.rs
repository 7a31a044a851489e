//! Credentials that a pod brings in its volume's secret.

use std::{collections::HashMap, fs};

use weightd_harness::{FakeGcs, Fault, FaultProxy, HubServer, ModelShape, Repository, S3Server, require};
use weightd_proto::v1::{self, FailureKind};

use super::{Cluster, refused};
use crate::volumes::fuse;

fn with(cluster: &Cluster, pod: &str, source: &str, secrets: &[(&str, &str)]) -> v1::PublishRequest {
    let mut request = cluster.request(pod, "reader");
    source.clone_into(&mut request.source);
    request.wait = true;
    let secrets = secrets.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
    request.pod.as_mut().unwrap().secrets = secrets.collect::<HashMap<_, _>>();
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_repository_is_shown_to_the_pod_that_brings_a_token() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let hub = HubServer::start().await.unwrap();
    hub.push("o/n", Repository::new().file("config.json", "{}").large_file("m.bin", "weights").gated());
    hub.grant("hub-secret-of-the-pod", &["o/n"]);
    hub.grant("hub-secret-of-the-node", &["o/n"]);
    hub.grant("hub-secret-of-a-stranger", &[]);
    let more = format!("[source.hub]\nendpoint = {:?}", hub.endpoint());
    let mut cluster = Cluster::new(&gcs, &ModelShape::tiny(), &more).await;
    cluster.set_env("HF_TOKEN", "hub-secret-of-the-node");
    let _agent = cluster.place.agent().await;
    let token = [("HF_TOKEN", "hub-secret-of-the-pod")];
    cluster.ask(with(&cluster, "first", "hf://o/n", &token)).await.unwrap();
    assert_eq!(fs::read_to_string(cluster.target("first").join("config.json")).unwrap(), "{}");
    let (kind, message) = refused(cluster.ask(with(&cluster, "second", "hf://o/n", &[])).await);
    assert_eq!(kind, FailureKind::NotPermitted);
    assert!(message.contains("hf://o/n") && message.contains("nodePublishSecretRef"), "{message}");
    let strangers = [("HF_TOKEN", "hub-secret-of-a-stranger")];
    let (kind, message) = refused(cluster.ask(with(&cluster, "third", "hf://o/n", &strangers)).await);
    assert_eq!(kind, FailureKind::NotPermitted);
    assert!(message.contains("the HF_TOKEN that pod team/third brought"), "{message}");
    let node = Some("Bearer hub-secret-of-the-node");
    assert!(hub.requests().all().iter().all(|request| request.header("authorization") != node));
    let elsewhere = hub.cdn_requests().all();
    assert!(!elsewhere.is_empty(), "large files come from another host");
    assert!(elsewhere.iter().all(|request| request.header("authorization").is_none()), "a token went there");
    assert!(!format!("{message}{}", cluster.log()).contains("hub-secret"), "a token was shown");
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_is_read_with_the_keys_that_the_pod_brings_and_not_with_the_nodes() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let s3 = require!(S3Server::start().await);
    s3.create_bucket("models").await.unwrap();
    s3.upload("models", "m/config.json", "{}").await.unwrap();
    let proxy = FaultProxy::start(&s3.endpoint()).await.unwrap();
    let more = format!("[source.s3]\nendpoint = {:?}\nregion = \"us-east-1\"", proxy.url());
    let mut cluster = Cluster::new(&gcs, &ModelShape::tiny(), &more).await;
    cluster.set_env("AWS_ACCESS_KEY_ID", "KEY-OF-THE-NODE");
    cluster.set_env("AWS_SECRET_ACCESS_KEY", "s3-secret-of-the-node");
    let _agent = cluster.place.agent().await;
    let keys = [("AWS_ACCESS_KEY_ID", "KEY-OF-THE-POD"), ("AWS_SECRET_ACCESS_KEY", "s3-secret-of-the-pod")];
    cluster.ask(with(&cluster, "first", "s3://models/m", &keys)).await.unwrap();
    assert_eq!(fs::read_to_string(cluster.target("first").join("config.json")).unwrap(), "{}");
    let (kind, message) = refused(cluster.ask(with(&cluster, "second", "s3://models/m", &[])).await);
    assert_eq!(kind, FailureKind::NotPermitted);
    assert!(message.contains("s3://models/m") && message.contains("nodePublishSecretRef"), "{message}");
    let requests = proxy.requests().all();
    let signed: Vec<&str> = requests.iter().filter_map(|request| request.header("authorization")).collect();
    assert!(signed.iter().any(|header| header.contains("KEY-OF-THE-POD")), "{signed:?}");
    assert!(!signed.iter().any(|header| header.contains("KEY-OF-THE-NODE")), "{signed:?}");
    assert!(!format!("{message}{}", cluster.log()).contains("s3-secret"), "a key was shown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_a_token_no_longer_sees_is_not_shown_to_its_pod_while_the_hub_is_away() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let hub = HubServer::start().await.unwrap();
    hub.push("o/n", Repository::new().file("config.json", "{}").private());
    hub.grant("hub-secret-of-the-pod", &["o/n"]);
    let proxy = FaultProxy::start(&hub.endpoint()).await.unwrap();
    let more = format!("[source.hub]\nendpoint = {:?}", proxy.url());
    let cluster = Cluster::new(&gcs, &ModelShape::tiny(), &more).await;
    let _agent = cluster.place.agent().await;
    let token = [("HF_TOKEN", "hub-secret-of-the-pod")];
    let publish = async |pod: &str| cluster.ask(with(&cluster, pod, "hf://o/n", &token)).await;
    let away = || proxy.inject("", u32::MAX, Fault::Status { code: 503, retry_after: None });
    publish("first").await.unwrap();
    away();
    publish("second").await.unwrap();
    proxy.clear();
    // As someone takes the token's rights away: to it, nothing is there any more.
    hub.grant("hub-secret-of-the-pod", &[]);
    let (kind, message) = refused(publish("third").await);
    assert!(kind == FailureKind::NotFound && message.contains("the token may not read it"), "{message}");
    away();
    let (kind, message) = refused(publish("fourth").await);
    assert!(kind == FailureKind::Unavailable && message.contains("503"), "{message}");
    assert_eq!(fs::read_to_string(cluster.target("first").join("config.json")).unwrap(), "{}");
}
