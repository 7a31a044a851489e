//! What is stored is read again in the background: rot is found although nobody asks.

use std::{path::Path, time::Duration};

use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::time::{Instant, sleep};
use weightd_fetch::{BadChunk, Config};
use weightd_source::{Fault, Faults, Rule};
use weightd_types::Layout;

use crate::{
    common::{Fixture, MODEL, assert_holds, hasty, put_model, soon, until},
    verify::{blob_path, flip, verify},
};

const MIB: u64 = 1 << 20;
/// Chunks of the model that [`put_model`] puts.
const CHUNKS: u64 = 9;

fn scrubbing(bytes_per_second: u64) -> Config {
    Config { scrub_bytes: Some(bytes_per_second), ..hasty() }
}

async fn fetched(config: Config) -> Fixture {
    let fixture = Fixture::faulty(&Faults::new(1), config).await;
    put_model(&fixture.origin);
    fixture.prefetch(Layout::Aligned).await.unwrap();
    fixture
}

fn metric(fixture: &Fixture, name: &str) -> u64 {
    let (mut registry, mut text) = (Registry::default(), String::new());
    fixture.fetcher.metrics().register(&mut registry);
    encode(&mut text, &registry).unwrap();
    let name = format!("weightd_fetch_{name} ");
    text.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
}

fn scrubbed(fixture: &Fixture) -> u64 {
    metric(fixture, "scrubbed_chunks_total")
}

pub(crate) async fn until_round_ended(fixture: &Fixture) {
    until(|| metric(fixture, "scrub_round_end_time_seconds") > 0).await;
}

async fn until_damage(damaged: &mut tokio::sync::mpsc::Receiver<BadChunk>) -> BadChunk {
    soon(damaged.recv()).await.expect("the scrub goes on")
}

fn is_complete(fixture: &Fixture) -> bool {
    fixture.store().find(MODEL).unwrap().complete
}

#[tokio::test(flavor = "multi_thread")]
async fn rot_is_repaired_although_nobody_asks() {
    let fixture = fetched(scrubbing(1 << 40)).await;
    flip(&blob_path(&fixture, "1.safetensors", ""), 9_000_000);
    flip(&blob_path(&fixture, "2.safetensors", ""), 17 << 20);
    let before = fixture.origin.bytes_served();
    let mut damaged = fixture.fetcher.scrub();
    let mut found = [until_damage(&mut damaged).await, until_damage(&mut damaged).await];
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert_eq!((found[0].path.as_str(), found[1].path.as_str()), ("1.safetensors", "2.safetensors"));
    assert_eq!((found[0].range.start, found[1].range.start), (8 * MIB, 16 * MIB));
    assert!(found.iter().all(|bad| bad.repaired && bad.failure.is_none()));
    until_round_ended(&fixture).await;
    assert!(fixture.origin.bytes_served() - before <= 16 * MIB, "only bad chunks are fetched");
    assert_eq!(scrubbed(&fixture), CHUNKS);
    assert_eq!(metric(&fixture, "scrub_bad_chunks_total"), 2);
    assert_eq!(metric(&fixture, "scrub_repaired_chunks_total"), 2);
    assert!(is_complete(&fixture));
    assert!(verify(&fixture, false).await.1.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_origin_damage_is_told_once_and_nothing_called_complete() {
    let fixture = fetched(scrubbing(1 << 40)).await;
    flip(&blob_path(&fixture, "1.safetensors", ""), 9_000_000);
    fixture.origin.remove("model/1.safetensors");
    let mut damaged = fixture.fetcher.scrub();
    let bad = until_damage(&mut damaged).await;
    let failure = bad.failure.as_deref().unwrap();
    assert!(!bad.repaired && failure.contains(&format!("{MODEL}/1.safetensors")), "{bad:?}");
    assert!(!is_complete(&fixture));
    // The other blobs are still whole, may be mounted, and are read on.
    until(|| scrubbed(&fixture) > 2 * CHUNKS).await;
    assert_eq!(metric(&fixture, "scrub_bad_chunks_total"), 1);
    assert_eq!(metric(&fixture, "scrub_repaired_chunks_total"), 0);
    assert!(damaged.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_files_and_damaged_descriptions_are_brought_back() {
    let damages: [(&str, fn(&Path)); 4] = [
        ("", |path| std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(9 << 20).unwrap()),
        ("", |path| std::fs::remove_file(path).unwrap()),
        (".json", |path| flip(path, 100)),
        (".json", |path| std::fs::remove_file(path).unwrap()),
    ];
    for (at, (ending, damage)) in damages.into_iter().enumerate() {
        let fixture = Fixture::faulty(&Faults::new(1), scrubbing(1 << 40)).await;
        let objects = put_model(&fixture.origin);
        fixture.prefetch(Layout::Aligned).await.unwrap();
        damage(&blob_path(&fixture, "1.safetensors", ending));
        let mut damaged = fixture.fetcher.scrub();
        let bad = until_damage(&mut damaged).await;
        assert!(bad.repaired, "damage {at}: {bad:?}");
        until_round_ended(&fixture).await;
        assert!(is_complete(&fixture), "damage {at}");
        assert_holds(&fixture.store().find(MODEL).unwrap().directory.unwrap(), &objects);
        assert!(verify(&fixture, false).await.1.is_empty(), "damage {at}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_scrubbed_can_be_removed_and_leaves_no_open_file() {
    let fixture = fetched(scrubbing(1)).await;
    let path = blob_path(&fixture, "1.safetensors", "");
    let blobs = path.parent().unwrap().parent().unwrap().to_owned();
    let is_open = |of: &Path| {
        let open = std::fs::read_dir("/proc/self/fd").unwrap();
        open.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
            .any(|target| target.starts_with(of))
    };
    let mut damaged = fixture.fetcher.scrub();
    until(|| is_open(&blobs)).await;
    assert!(!fixture.store().find(MODEL).unwrap().in_use);
    fixture.store().remove(MODEL, false).await.unwrap();
    until(|| !is_open(&blobs)).await;
    assert_eq!(metric(&fixture, "scrub_bad_chunks_total"), 0);
    assert!(damaged.try_recv().is_err());
    soon(fixture.fetcher.close()).await;
    assert!(damaged.recv().await.is_none(), "it ends with the fetcher");
}

#[tokio::test]
async fn the_rate_is_a_bound() {
    let fixture = fetched(scrubbing(4 * MIB)).await;
    let stored: u64 = fixture.store().find(MODEL).unwrap().manifest.size();
    tokio::time::pause();
    let begun = Instant::now();
    let _damaged = fixture.fetcher.scrub();
    while metric(&fixture, "scrub_round_end_time_seconds") == 0 {
        let least = Duration::from_secs(scrubbed(&fixture).saturating_sub(3) * 8 / 4);
        assert!(begun.elapsed() >= least, "{} chunks in {:?}", scrubbed(&fixture), begun.elapsed());
        sleep(Duration::from_millis(100)).await;
    }
    assert!(begun.elapsed() >= Duration::from_secs(stored / (4 * MIB)), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn it_stands_still_while_something_is_fetched() {
    let faults = Faults::new(1).with(Rule::reads(Fault::Stall { after: 0, lasting: None }).of("late.bin"));
    let patient =
        Config { stall: Duration::from_secs(300), give_up: Duration::from_secs(600), ..scrubbing(1 << 40) };
    let fixture = Fixture::faulty(&faults, Config { attempts: 1, ..patient }).await;
    put_model(&fixture.origin);
    fixture.prefetch(Layout::Aligned).await.unwrap();
    fixture.origin.put("other/late.bin", vec![1; 1 << 20]);
    let transfer = fixture.start("memory://origin/other", 0).await;
    let stalled = tokio::spawn(async move { transfer.wait().await.map(drop) });
    until(|| fixture.fetcher.requests_in_flight() > 0).await;
    tokio::time::pause();
    let _damaged = fixture.fetcher.scrub();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(scrubbed(&fixture), 0);
    stalled.await.unwrap().unwrap_err();
    while scrubbed(&fixture) < CHUNKS {
        sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_rate_nothing_is_read() {
    let fixture = fetched(Config { scrub_bytes: None, ..hasty() }).await;
    assert!(soon(fixture.fetcher.scrub().recv()).await.is_none());
    assert_eq!(scrubbed(&fixture), 0);
}
