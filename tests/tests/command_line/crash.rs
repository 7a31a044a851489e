//! `kill -9`, at any moment.

use std::{path::Path, process::Stdio, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::sleep;
use weightd_harness::{FakeGcs, Model, ModelShape, Wire, assert_same_tensors, require};

use crate::{
    place::{Place, number},
    program::{Running, until},
};

const KILLS: u32 = 50;
const SOURCE: &str = "gs://models/demo";

/// Slow enough that kills land within the transfer.
const SLOW: &str = "[fetch]\nbandwidth = \"64MiB/s\"\nmin_requests = 1\nmax_requests = 2";

/// A model of 200 MB in a bucket.
async fn bucket(gcs: &FakeGcs, directory: &Path) -> Model {
    let model = Model::write(directory, &ModelShape::demo()).unwrap();
    gcs.create_bucket("models").await.unwrap();
    gcs.place_directory("models", "demo", &model.directory).unwrap();
    model
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_kills_lose_nothing_that_was_recorded() {
    let gcs = require!(FakeGcs::start().await);
    let wire = Wire::start(&gcs.endpoint()).await.unwrap();
    let place = Place::new(SLOW).gcs(wire.url());
    let model = bucket(&gcs, &place.at("model")).await;
    let size = model.file_bytes().unwrap();
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);

    let (mut kills, mut completed, mut missing, mut advanced) = (0, 0, size, 0);
    while kills < KILLS {
        let delay = Duration::from_millis(random.random_range(0..600));
        let mut prefetch = place.embedded(&format!("prefetch {SOURCE}"));
        let mut prefetch = Running::start(prefetch.stdout(Stdio::null()).stderr(Stdio::null()));
        sleep(delay).await;
        match prefetch.kill() {
            Some(code) => assert_eq!(code, 0, "seed {seed}, kill {kills}: it ended by itself"),
            None => kills += 1,
        }
        let left = place.missing(SOURCE);
        assert!(left <= missing, "seed {seed}, kill {kills}: {missing} bytes were missing, now {left}");
        advanced += u32::from(left < missing);
        missing = left;
        if missing == 0 {
            // Whatever came last, the snapshot's directory included, is made whole without the origin's data.
            let brought = place.run(&format!("prefetch {SOURCE} -o json")).json();
            assert_eq!(number(&brought, "fetched_bytes"), 0, "seed {seed}, kill {kills}");
            assert_same_tensors(&model.directory, &place.path(SOURCE));
            place.run(&format!("rm {SOURCE}")).done();
            (completed, missing) = (completed + 1, size);
        } else if kills % 10 == 0 {
            place.run("verify --no-repair").done();
        }
    }
    let brought = place.run(&format!("prefetch {SOURCE} -o json")).json();
    let fetched = number(&brought, "fetched_bytes");
    // Headers are asked for apart from the data, and not counted with it.
    assert!(fetched.abs_diff(missing) <= 64 << 10, "seed {seed}: {fetched} of {missing} missing");
    assert_eq!(number(&brought, "reused_bytes"), size - missing, "seed {seed}");
    place.run("verify --no-repair").done();
    assert_same_tensors(&model.directory, &place.path(SOURCE));

    let (models, received) = (completed + 1, wire.received());
    eprintln!(
        "{kills} kills, {advanced} advanced; {models} models of {size} bytes; {received} bytes received"
    );
    assert!(advanced >= KILLS / 4, "seed {seed}: only {advanced} of the killed runs recorded anything");
    // A kill costs what was on its way: the chunk that each of the two requests had begun (16 MiB at most, half of that
    // on average), what came since the last record (6.4 MiB in 100 ms, and what a sync takes), and what waited in the
    // sockets before and behind the wire. Measured, six times: 18 to 21 MB per kill on average.
    let bound = models * size + u64::from(kills) * (24 << 20);
    assert!(received <= bound, "seed {seed}: {received} bytes for {models} models of {size}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_killed_goes_on_with_a_detached_prefetch_by_itself() {
    let gcs = require!(FakeGcs::start().await);
    let wire = Wire::start(&gcs.endpoint()).await.unwrap();
    let place = Place::new(SLOW).gcs(wire.url());
    let model = bucket(&gcs, &place.at("model")).await;
    let size = model.file_bytes().unwrap();

    let mut agent = place.agent().await;
    place.ask(&format!("prefetch {SOURCE} --detach --pin")).done();
    let present = || {
        let snapshots = place.ask("ls -o json").json();
        let snapshot = snapshots.get(0)?;
        Some((number(snapshot, "present_bytes"), snapshot["state"].as_str()?.to_owned()))
    };
    let recorded = until("a quarter is there", async || {
        let (bytes, state) = present()?;
        assert_eq!(state, "loading");
        (bytes >= size / 4).then_some(bytes)
    })
    .await;
    assert_eq!(agent.kill(), None, "it ran until it was killed");
    let before = wire.received();
    assert!(recorded < size && before < size + (8 << 20), "the kill landed within the transfer");

    let _agent = place.agent().await;
    until("the agent completes it", async || (present()?.1 == "complete").then_some(())).await;
    let fetched = wire.received() - before;
    assert!(
        fetched < size - recorded + (32 << 20),
        "{fetched} bytes fetched again of {size}, {recorded} were here"
    );
    let snapshot = place.ask(&format!("get {SOURCE} -o json")).json()["snapshot"].take();
    assert_eq!(snapshot["pinned"], true, "{snapshot}");
    assert_same_tensors(&model.directory, Path::new(snapshot["directory"].as_str().unwrap()));
    place.ask("verify --no-repair").done();
}
