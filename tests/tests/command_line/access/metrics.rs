//! Every metric of access is moved by something.

use weightd_harness::{FakeGcs, ModelShape, require};

use super::{BUCKET, Cluster, READER};
use crate::volumes::{fuse, metric};

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_of_access_moves() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let cluster = Cluster::new(&gcs, &ModelShape::tiny(), "").await;
    cluster.guard.grant(READER, BUCKET);
    let _agent = cluster.place.agent().await;
    let is = |name: &str, expected: u64| {
        assert_eq!(metric(&cluster.place, &format!("weightd_access_{name}")), expected, "{name}");
    };
    is("live_credentials", 0);
    cluster.publish("first", "reader").await.unwrap();
    cluster.until_complete().await;
    is("granted_admissions_total", 1);
    is("exchanged_tokens_total", 1);
    is("live_credentials", 1);
    cluster.publish("second", "stranger").await.unwrap_err();
    is("refused_admissions_total", 1);
    cluster.guard.set_gate_down(true);
    cluster.publish("third", "reader").await.unwrap();
    is("earlier_admissions_total", 1);
    cluster.guard.set_tokens_down(true);
    cluster.publish("fourth", "stranger").await.unwrap_err();
    is("failed_admissions_total", 1);
    is("failed_exchanges_total", 1);
    cluster.guard.set_tokens_down(false);
    cluster.guard.set_tokens_refused(true);
    cluster.publish("fifth", "stranger").await.unwrap_err();
    is("refused_exchanges_total", 1);
    is("refused_admissions_total", 2);
    // One more of the same account, with a token of its own.
    is("live_credentials", 2);
    cluster.unpublish("first").await;
    cluster.unpublish("third").await;
    is("live_credentials", 0);
}
