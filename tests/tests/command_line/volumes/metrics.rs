//! Every metric of volumes is moved by something.

use std::fs;

use weightd_client::handoff::Request;
use weightd_harness::{FakeGcs, Fault, FaultProxy, ModelShape, require};

use super::{Node, fuse};
use crate::{daemon::get, handoff, program::until};

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_of_volumes_moves() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let proxy = FaultProxy::start(&gcs.endpoint()).await.unwrap();
    let more = "[fetch]\nattempts = 1\n[volumes]\nread_timeout = \"2s\"";
    let node = Node::new(&gcs, &proxy.url(), &ModelShape::small(), more).await;
    let _agent = node.place.agent().await;
    proxy.inject("config.json", u32::MAX, Fault::Status { code: 403, retry_after: None });
    node.mount("--warm-up");
    let read = |name: &String| fs::read(node.target().join(name));
    until("a read fails", async || read(&"config.json".to_owned()).err()).await;
    proxy.clear();
    for name in &node.model.files {
        until("it is read", async || read(name).ok()).await;
    }
    node.until_complete().await;
    // Whatever was read past the agent before that was left out of the first warm-up.
    node.mount("--warm-up");
    let lease = handoff::open(&handoff::volume_socket(&node), Request::default()).await.unwrap();
    until("a complete file is opened", async || {
        read(&node.model.files[0]).unwrap();
        let text = get(&node.place, "/metrics").unwrap().1;
        let values = text.lines().filter(|line| line.starts_with("weightd_expose_"));
        let still: Vec<_> = values.clone().filter(|line| line.ends_with(" 0")).collect();
        assert_eq!(values.count(), 10, "{text}");
        still.is_empty().then_some(())
    })
    .await;
    drop(lease);
}
