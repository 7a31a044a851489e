//! Tensors handed out from a tier.

use weightd_client::handoff::Request;
use weightd_harness::{FakeGcs, LoopMount, ModelShape, Wire, require};

use super::{
    SOURCE, Workshop,
    tiers::{Unmounted, flip_in_shards, used, with_tiers},
};
use crate::{
    handoff::{all, assert_right, open, wait},
    place::Place,
    program::{Running, until},
    volumes::fuse,
};

/// A keeper, and an agent that knows of tiers and listens on the node's socket.
async fn node(place: &Place, more: &str) -> (Running, Running) {
    with_tiers(place, &format!("{more}\n[volumes]\nkeeper = {:?}", place.at("keeper.sock")));
    let keeper = place.keeper(&["--resident-limit", "1Gi"]).await;
    let agent = place.agent().await;
    let socket = place.socket().with_file_name("handoff.sock");
    until("the socket is there", async || socket.exists().then_some(())).await;
    (keeper, agent)
}

/// All tensors of the model, compared with its files.
async fn take(workshop: &Workshop) {
    let socket = workshop.place.socket().with_file_name("handoff.sock");
    let request = Request { source: SOURCE.to_owned(), ..Request::default() };
    let session = open(&socket, request).await.unwrap();
    wait(&session, all(&session), true).await.unwrap();
    assert_right(&session, all(&session), &workshop.demo.directory);
}

#[tokio::test(flavor = "multi_thread")]
async fn tensors_on_a_boot_disk_are_handed_out_without_a_request() {
    let gcs = require!(FakeGcs::start().await);
    require!(fuse());
    let wire = Wire::start(&gcs.endpoint()).await.unwrap();
    let workshop = Workshop::new(&gcs, wire.url(), &ModelShape::small(), "").await;
    let place = &workshop.place;
    let _unmounted = Unmounted(place);
    let _disk = require!(workshop.mounted("weights", ""));
    let before = wire.received();
    let _node = node(place, "ask_origin = false").await;
    take(&workshop).await;
    assert_eq!((wire.received(), used(place)), (before, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_comes_to_flipped_bits_of_a_tier_has_right_tensors() {
    let gcs = require!(FakeGcs::start().await);
    require!(fuse());
    let wire = Wire::start(&gcs.endpoint()).await.unwrap();
    let workshop = Workshop::new(&gcs, wire.url(), &ModelShape::demo(), "").await;
    let place = &workshop.place;
    let _unmounted = Unmounted(place);
    drop(require!(workshop.mounted("weights", "")));
    let image = place.at("weights.raw");
    // In two chunks of two shards: who comes to the second does so while the first is being mended.
    flip_in_shards(&image, &place.at("disks/weights"), 2, &[5 << 20, 20 << 20]);
    let _disk = require!(LoopMount::read_only(&image, &place.at("disks/weights")));
    let _node = node(place, "").await;
    let before = wire.received();
    futures::future::join_all((0..3).map(async |_| take(&workshop).await)).await;
    let received = wire.received() - before;
    assert!(received < 36 << 20, "{received} bytes for four chunks");
}
