//! Every metric is moved by something.

use weightd_harness::require;

use crate::cluster::{Cluster, until};

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_moves_also_where_the_api_takes_no_events() {
    let mut cluster = require!(Cluster::start().await);
    // All that a driver needs but the right to write events.
    let resources = ["nodes", "nodes/status", "configmaps"];
    cluster.allow(&["get", "list", "watch", "patch"], &resources).await;
    cluster.origin.put("here/tokenizer.bin", vec![1; 3 << 20]);
    cluster
        .list("models:\n- source: memory://m/here\n  required: true\n- source: memory://m/missing\n")
        .await;
    assert!(cluster.measured().values().all(|value| *value == 0.0));
    cluster.registered.send_replace(true);
    cluster.run(true);
    cluster.until_condition("True", "Complete").await;
    let measured = until("every metric has moved", async || {
        let measured = cluster.measured();
        measured.values().all(|value| *value > 0.0).then_some(measured)
    })
    .await;
    let bytes = f64::from(3 << 20);
    for (name, value) in [
        ("wanted_models", 2.0),
        ("required_models", 1.0),
        ("complete_models", 1.0),
        ("failing_models", 1.0),
        ("wanted_bytes", bytes),
        ("present_bytes", bytes),
        ("weights_ready", 1.0),
        ("taints_removed_total", 1.0),
    ] {
        assert_eq!(measured.get(&format!("weightd_cluster_{name}")), Some(&value), "{name}");
    }
    assert_eq!(measured.len(), 9, "{measured:?}");
    assert!(measured.contains_key("weightd_cluster_api_errors_total"), "{measured:?}");
    cluster.list("models: []").await;
    until("it is counted that none is wanted any more", async || {
        (cluster.measured()["weightd_cluster_wanted_models"] == 0.0).then_some(())
    })
    .await;
    cluster.end().await;
}
