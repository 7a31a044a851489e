//! Who is let in, who is not, and in which words.

use std::{fs, os::unix::fs::symlink};

use weightd_harness::{FakeGcs, ModelShape, require};
use weightd_proto::v1::FailureKind;

use super::{BUCKET, Cluster, NODE, PROVIDER, READER, STRANGER, refused};
use crate::volumes::fuse;

#[tokio::test(flavor = "multi_thread")]
async fn of_two_service_accounts_the_one_without_access_is_refused_what_is_here_already() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let cluster = Cluster::new(&gcs, &ModelShape::small(), "").await;
    cluster.guard.grant(READER, BUCKET);
    let _agent = cluster.place.agent().await;
    cluster.publish("first", "reader").await.unwrap();
    cluster.until_complete().await;
    cluster.assert_right("first").await;

    let (kind, message) = refused(cluster.publish("second", "stranger").await);
    assert_eq!(kind, FailureKind::NotPermitted);
    let pool = PROVIDER.split_once("/providers").unwrap().0;
    assert_eq!(
        message,
        format!(
            "gs://models/demo: 403 for principal:{pool}/subject/{STRANGER} ({STRANGER} does not have storage.objects.list \
             access to the Google Cloud Storage bucket.): grant roles/storage.objectViewer on gs://models to it"
        )
    );
    assert!(!cluster.target("second").exists(), "nothing is left of a volume that was refused");
    cluster.publish("third", "reader").await.unwrap();
    cluster.assert_right("third").await;
    cluster.guard.revoke(READER, BUCKET);
    let (kind, _) = refused(cluster.publish("fourth", "reader").await);
    assert_eq!(
        kind,
        FailureKind::NotPermitted,
        "an origin that can be asked is believed, whatever it said before"
    );
    assert!(!cluster.guard.asked().contains(&NODE.to_owned()), "{:?}", cluster.guard.asked());
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_origin_is_away_an_answer_counts_as_long_as_it_lasts() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let cluster = Cluster::new(&gcs, &ModelShape::tiny(), "").await;
    cluster.guard.grant(READER, BUCKET);
    cluster.guard.grant(STRANGER, BUCKET);
    cluster.guard.set_life(std::time::Duration::from_secs(20));
    let _agent = cluster.place.agent().await;
    let shown = cluster.publish("first", "reader").await.unwrap();
    cluster.until_complete().await;
    cluster.guard.set_gate_down(true);
    let again = cluster.publish("second", "reader").await.unwrap();
    assert_eq!(again.snapshot, shown.snapshot);
    cluster.assert_right("second").await;
    let (kind, message) = refused(cluster.publish("third", "stranger").await);
    assert!(kind == FailureKind::Unavailable && message.contains("503"), "{message}");
    // Nor when it cannot even be found out who asks.
    cluster.guard.set_tokens_down(true);
    cluster.publish("fourth", "reader").await.unwrap();
    let (kind, message) = refused(cluster.publish("fifth", "stranger").await);
    assert!(kind == FailureKind::Unavailable && message.contains("cannot be verified"), "{message}");
    crate::program::until("the answer expires", async || {
        cluster.unpublish("fourth").await;
        cluster.publish("fourth", "reader").await.err()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_reads_for_pods_only_where_the_operator_says_so() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let cluster = Cluster::new(&gcs, &ModelShape::tiny(), "").await;
    cluster.configure("identity = \"node\"");
    let _agent = cluster.place.agent().await;
    cluster.publish("first", "stranger").await.unwrap();
    cluster.until_complete().await;
    cluster.assert_right("first").await;
    assert!(cluster.guard.asked().iter().all(|who| who == NODE), "{:?}", cluster.guard.asked());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_of_its_own_a_pod_is_nobody_and_without_a_pod_there_is_no_volume() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let cluster = Cluster::new(&gcs, &ModelShape::tiny(), "").await;
    cluster.guard.grant(READER, BUCKET);
    let _agent = cluster.place.agent().await;
    let mut without = cluster.request("first", "reader");
    without.pod.as_mut().unwrap().tokens.clear();
    let (kind, message) = refused(cluster.ask(without.clone()).await);
    assert_eq!(kind, FailureKind::NotPermitted);
    for words in
        ["gs://models/demo: 401 for anonymous", "tokenRequests in the CSIDriver", "project.svc.id.goog"]
    {
        assert!(message.contains(words), "{message}");
    }
    let mut anothers = cluster.request("first", "reader");
    anothers.pod.as_mut().unwrap().service_account = "stranger".to_owned();
    let (kind, message) = refused(cluster.ask(anothers).await);
    assert!(kind == FailureKind::NotPermitted && message.contains("another service account's"), "{message}");

    let mut nobodys = cluster.request("first", "reader");
    nobodys.pod = None;
    let (kind, message) = refused(cluster.ask(nobodys).await);
    assert!(kind == FailureKind::Usage && message.contains("nobody said which pod"), "{message}");
    let mut elsewhere = cluster.request("first", "reader");
    elsewhere.target_path = cluster.place.at("elsewhere").to_str().unwrap().to_owned();
    let (kind, message) = refused(cluster.ask(elsewhere).await);
    assert!(kind == FailureKind::Usage && message.contains("access.kubelet_directory"), "{message}");
    assert!(!cluster.guard.asked().contains(&NODE.to_owned()));

    // A bucket that everybody may read, a pod without a token may read too.
    cluster.guard.grant("anonymous", BUCKET);
    cluster.ask(without).await.unwrap();
    cluster.until_complete().await;
    cluster.assert_right("first").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_volume_was_made_of_is_shown_or_the_change_is_named() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let cluster = Cluster::new(&gcs, &ModelShape::tiny(), "").await;
    cluster.guard.grant(READER, BUCKET);
    let _agent = cluster.place.agent().await;
    let first = cluster.publish("first", "reader").await.unwrap();
    cluster.until_complete().await;
    gcs.upload(BUCKET, "demo/more.txt", "new").await.unwrap();
    let id = first.snapshot.split_once('.').unwrap().0.to_owned();
    let mut expecting = cluster.request("second", "reader");
    expecting.expected_snapshot.clone_from(&id);
    let second = cluster.ask(expecting).await.unwrap();
    assert_eq!(second.snapshot, first.snapshot, "this node has it");
    let mut unknown = cluster.request("third", "reader");
    unknown.expected_snapshot = "0".repeat(id.len());
    let (kind, message) = refused(cluster.ask(unknown).await);
    assert!(kind == FailureKind::Usage && message.contains("make a new volume"), "{message}");
    let mut by_id = cluster.request("fourth", "reader");
    by_id.source = id;
    let (kind, _) = refused(cluster.ask(by_id).await);
    assert_eq!(kind, FailureKind::Usage, "a pod cannot name what is stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_the_nodes_own_files_pods_see_what_the_operator_allows_and_no_link_leads_out() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let cluster = Cluster::new(&gcs, &ModelShape::tiny(), "").await;
    let at = |name: &str| cluster.place.at(name);
    for name in ["shared/good", "shared/evil", "secret"] {
        fs::create_dir_all(at(name)).unwrap();
        fs::write(at(name).join("a.txt"), name).unwrap();
    }
    symlink(at("secret"), at("shared/link")).unwrap();
    symlink(at("secret/a.txt"), at("shared/evil/b.txt")).unwrap();
    cluster.configure(&format!("identity = \"node\"\nfiles = [\"{}/*\"]", at("shared").display()));
    let _agent = cluster.place.agent().await;
    let publish = async |name: &str| {
        let mut request = cluster.request("first", "reader");
        request.source = format!("file://{}", at(name).display());
        cluster.ask(request).await
    };
    for name in ["secret", "shared/link", "shared", "none"] {
        let (kind, message) = refused(publish(name).await);
        assert!(kind == FailureKind::NotPermitted && message.contains("access.files"), "{name}: {message}");
    }
    let (kind, _) = refused(publish("shared/good/../../secret").await);
    assert_eq!(kind, FailureKind::Usage);
    let (kind, message) = refused(publish("shared/evil").await);
    assert!(kind == FailureKind::Usage && message.contains("leads out of the directory"), "{message}");
    publish("shared/good").await.unwrap();
    assert_eq!(fs::read_to_string(cluster.target("first").join("a.txt")).unwrap(), "shared/good");
}
