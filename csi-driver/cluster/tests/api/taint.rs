//! The startup taint.

use weightd_cluster::TAINT;
use weightd_harness::require;

use crate::cluster::{Cluster, until};

#[tokio::test(flavor = "multi_thread")]
async fn the_taint_goes_when_the_driver_is_registered_and_goes_again_when_it_comes_back() {
    let mut cluster = require!(Cluster::start().await);
    cluster.run(false);
    cluster.until_condition("True", "NothingRequired").await;
    assert!(cluster.taints().await.contains(&TAINT.to_owned()), "the driver is not registered yet");
    cluster.registered.send(true).unwrap();
    let gone = async || {
        let taints = cluster.taints().await;
        assert!(taints.contains(&"example.com/other".to_owned()), "{taints:?}");
        (!taints.contains(&TAINT.to_owned())).then_some(())
    };
    until("the taint is gone", gone).await;
    for effect in ["NoExecute", "NoSchedule"] {
        cluster.add_taint(TAINT, effect).await.unwrap();
        until("it is gone again", gone).await;
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn taints_that_others_write_at_the_same_time_are_all_there_in_the_end() {
    let mut cluster = require!(Cluster::start().await);
    cluster.registered.send_replace(true);
    cluster.run(false);
    for at in 0..40 {
        // The one of the turn before may not be gone yet.
        let _ = cluster.add_taint(TAINT, "NoSchedule").await;
        cluster.add_taint(&format!("example.com/{at}"), "NoSchedule").await.unwrap();
    }
    let left = until("the startup taint is gone", async || {
        let taints = cluster.taints().await;
        (!taints.contains(&TAINT.to_owned())).then_some(taints)
    })
    .await;
    for at in 0..40 {
        assert!(left.contains(&format!("example.com/{at}")), "{at} is missing in {left:?}");
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_taint_waits_for_the_required_models_where_the_operator_says_so() {
    let mut cluster = require!(Cluster::start().await);
    cluster.list("models:\n- source: memory://m/late\n  required: true\n").await;
    cluster.registered.send_replace(true);
    cluster.run(true);
    let failing = cluster.until_condition("False", "Failing").await;
    assert!(failing.message.unwrap().contains("memory://m/late"));
    assert!(cluster.taints().await.contains(&TAINT.to_owned()));
    cluster.origin.put("late/tokenizer.bin", vec![1; 9 << 20]);
    cluster.until_condition("True", "Complete").await;
    until("the taint is gone", async || (!cluster.taints().await.contains(&TAINT.to_owned())).then_some(()))
        .await;
    cluster.end().await;
}
