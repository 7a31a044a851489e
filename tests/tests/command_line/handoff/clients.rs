//! Clients that do as they like hurt nobody but themselves.

use std::{fs, time::Duration};

use tokio::task::spawn_blocking;
use weightd_client::handoff::{self, FailureKind, Request};
use weightd_harness::{FakeGcs, ModelShape, require};

use super::{
    all, assert_right, bytes, node, node_socket, of_source, open, open_source, raw, say, volume_socket, wait,
};
use crate::{
    program::until,
    volumes::{fuse, metric},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_one_writes_nobody_else_sees() {
    let gcs = require!(FakeGcs::start().await);
    let (node, _keeper) = node(&gcs, &gcs.endpoint(), &ModelShape::small(), "").await;
    let _agent = node.place.agent().await;
    node.place.ask("prefetch gs://models/demo").done();
    let [one, other] = [open_source(&node).await, open_source(&node).await];
    wait(&one, all(&one), true).await.unwrap();
    let tensor = &one.table().tensors()[0];
    let memory = one.arena(tensor.arena).map_private().unwrap();
    #[expect(unsafe_code, reason = "what model servers do")]
    // SAFETY: within the tensor, which nobody else here looks at.
    unsafe {
        std::ptr::write_bytes(memory.as_mut_ptr().add(tensor.offset), 0xee, tensor.bytes);
    };
    wait(&other, all(&other), true).await.unwrap();
    assert_right(&other, all(&other), &node.model.directory);
    assert!(one.arena(tensor.arena).map_private().unwrap().len() > 0);
    drop(one);
    let later = open_source(&node).await;
    assert_right(&later, all(&later), &node.model.directory);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volumes_socket_serves_the_volume_and_no_other() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let (node, _keeper) = node(&gcs, &gcs.endpoint(), &ModelShape::tiny(), "").await;
    let _agent = node.place.agent().await;
    node.place.ask("prefetch gs://models/demo").done();
    node.mount("");
    let socket = volume_socket(&node);
    let refused = open(&socket, of_source()).await.unwrap_err();
    assert_eq!(refused.kind(), FailureKind::Usage);
    let refused = open(&node_socket(&node), Request::default()).await.unwrap_err();
    assert!(refused.to_string().contains("name a source"), "{refused}");
    for (file, kind) in [("../x", FailureKind::NotFound), ("config.json", FailureKind::Usage)] {
        let request = Request { files: vec![file.to_owned()], ..Request::default() };
        let refused = open(&socket, request).await.unwrap_err();
        assert_eq!(refused.kind(), kind, "{refused}");
        assert!(refused.to_string().contains(file) && refused.to_string().contains("gs://models/demo"));
    }
    let mode = |path: &std::path::Path| {
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path).unwrap().permissions())
    };
    assert_eq!(mode(&node_socket(&node)) & 0o777, 0o600);
    assert_eq!(mode(&socket) & 0o777, 0o666);
    let unknown = Request { source: "abcdef".to_owned(), ..Request::default() };
    let refused = open(&node_socket(&node), unknown).await.unwrap_err();
    assert_eq!(refused.kind(), FailureKind::NotFound, "{refused}");
    node.place.ask(&format!("umount {}", node.target().display())).done();
    assert!(!socket.exists());
}

/// Junk, half a message, a message that is too long, a flood, and silence.
#[tokio::test(flavor = "multi_thread")]
async fn nonsense_ends_the_lease_of_who_says_it() {
    let gcs = require!(FakeGcs::start().await);
    let (node, _keeper) = node(&gcs, &gcs.endpoint(), &ModelShape::small(), "").await;
    let _agent = node.place.agent().await;
    node.place.ask("prefetch gs://models/demo").done();
    let session = open_source(&node).await;
    let socket = node_socket(&node);
    // `open` of version 9, and of version 1 of this source: `{1: {1: 1, 2: "gs://models/demo"}}`.
    let (other, source) = ([0x0a, 2, 8, 9], b"gs://models/demo");
    let mut opening = vec![0x0a, 4 + source.len() as u8, 8, 1, 0x12, source.len() as u8];
    opening.extend_from_slice(source);
    let (junk, long) = ([0xff; 100], vec![0; 65_537]);
    let mut clients: Vec<_> = [&other[..], &junk, &long, &opening[..9], &[]]
        .map(|packet| {
            let client = raw(&socket);
            say(&client, packet).unwrap();
            client
        })
        .into();
    for _ in 0..20 {
        // Wants all tensors, over and over, and reads nothing.
        let client = raw(&socket);
        say(&client, &opening).unwrap();
        let want = [0x12, 4, 0x0a, 2, 0x10, 5];
        while say(&client, &want).is_ok() {}
        clients.push(client);
    }
    // Says nothing at all.
    clients.extend((0..20).map(|_| raw(&socket)));
    wait(&session, all(&session), true).await.unwrap();
    assert_right(&session, all(&session), &node.model.directory);
    let later = open_source(&node).await;
    assert!(bytes(&later, 0) == bytes(&session, 0));
    drop(clients);
    drop((session, later));
    until("all leases have ended", async || {
        (metric(&node.place, "weightd_expose_leases") == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_no_more_leases_than_allowed() {
    let gcs = require!(FakeGcs::start().await);
    let (node, _keeper) = node(&gcs, &gcs.endpoint(), &ModelShape::tiny(), "[handoff]\nleases = 8").await;
    let _agent = node.place.agent().await;
    node.place.ask("prefetch gs://models/demo").done();
    let held = [open_source(&node).await, open_source(&node).await];
    // Whoever has patience is tried again with, so this one has little.
    let socket = node_socket(&node);
    let refused = spawn_blocking(move || handoff::open(&socket, &of_source(), Duration::from_secs(2)));
    let refused = refused.await.unwrap().unwrap_err();
    assert!(refused.to_string().contains("handoff.leases"), "{refused}");
    drop(held);
    until("there is room again", async || open(&node_socket(&node), of_source()).await.ok()).await;
}
