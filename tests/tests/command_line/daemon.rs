//! The agent as a process, and the command line as its client.

use std::{fs, os::unix::fs::PermissionsExt, process::Stdio};

use weightd_harness::{FakeGcs, require};

use crate::{
    place::{Place, number},
    program::{Ended, Running},
    wire::Wire,
};

const SOURCE: &str = "gs://models/m";
const BYTES: usize = 40 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn two_clients_share_one_transfer_and_every_command_works_through_the_socket() {
    let gcs = require!(FakeGcs::start().await);
    gcs.create_bucket("models").await.unwrap();
    gcs.upload("models", "m/tokenizer.bin", vec![3; BYTES]).await.unwrap();
    let wire = Wire::start(&gcs.endpoint()).await;
    let place = Place::new("[fetch]\nbandwidth = \"32MiB/s\"").gcs(wire.url());
    drop(std::os::unix::net::UnixListener::bind(place.socket()).unwrap());
    let mut agent = place.agent().await;
    assert_eq!(fs::metadata(place.socket()).unwrap().permissions().mode() & 0o777, 0o600);

    let prefetch = || {
        let mut command = place.client(&format!("prefetch {SOURCE} -o json"));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    for child in [prefetch(), prefetch()] {
        let brought = Ended::from(child.wait_with_output().unwrap()).json();
        assert_eq!(brought["snapshot"]["state"], "complete");
    }
    assert!(wire.received() < BYTES as u64 * 3 / 2, "{} bytes came", wire.received());

    let directory = place.ask(&format!("path {SOURCE}")).done();
    assert_eq!(directory.lines().count(), 1, "{directory}");
    assert_eq!(fs::read(format!("{}/tokenizer.bin", directory.trim_end())).unwrap(), vec![3; BYTES]);
    let status = place.ask("status -o json").json();
    assert!(number(&status["store"], "used_bytes") >= BYTES as u64, "{status}");
    assert!(place.ask(&format!("get {SOURCE}")).done().contains("tokenizer.bin"));
    place.ask(&format!("pin {SOURCE}")).done();
    let list = place.ask("ls").done();
    assert!(list.contains("pinned") && !list.contains('\x1b'), "{list}");
    place.ask("gc --partials -o json").json();
    place.ask(&format!("rm {SOURCE}")).failed(77, &["pinned", "--force"]);
    place.ask(&format!("unpin {SOURCE}")).done();
    place.ask(&format!("rm {SOURCE}")).done();
    place.ask(&format!("path {SOURCE}")).failed(66, &[SOURCE]);

    agent.signal("TERM");
    assert_eq!(agent.ended().await, Some(0));
    assert!(!place.socket().exists(), "it takes its socket away");
    let mut again: Running = place.agent().await;
    again.signal("INT");
    assert_eq!(again.ended().await, Some(0));
}
