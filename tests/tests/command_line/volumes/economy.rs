//! What reading costs: bytes that the origin sends, that the kernel asks the agent for, and that the agent reads from the
//! store.

use std::{fs::File, path::Path};

use memmap2::Advice;
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use weightd_harness::{FakeGcs, FaultProxy, ModelShape, require};
use weightd_types::CHUNK_BYTES;

use super::{Node, SLOW, fuse, map, metric};
use crate::program::Running;

const PAGE: usize = 4096;
/// What `SLOW` lets the kernel read ahead.
const READ_AHEAD: u64 = 1 << 20;
const READ_BYTES: &str = "weightd_expose_read_bytes_total";

/// How many pages of a file are touched, and in which order.
#[derive(Debug, Clone, Copy)]
enum Touch {
    AllInOrder,
    AllShuffled,
    Random(usize),
}

/// Touches pages of a mapped file, and says how many.
fn touch(origin: &Path, shown: &Path, which: Touch, advice: Advice) -> u64 {
    let expected = std::fs::read(origin).unwrap();
    let mapped = map(&File::open(shown).unwrap());
    mapped.advise(advice).unwrap();
    let mut pages: Vec<usize> = (0..expected.len().div_ceil(PAGE)).collect();
    if !matches!(which, Touch::AllInOrder) {
        pages.shuffle(&mut StdRng::seed_from_u64(expected.len() as u64));
    }
    if let Touch::Random(count) = which {
        pages.truncate(count);
    }
    for page in &pages {
        let at = page * PAGE;
        assert_eq!(mapped[at], expected[at], "{} at {at}", shown.display());
    }
    pages.len() as u64
}

/// That `bytes` are all of `whole`, and at most 1.2 times as many.
#[track_caller]
fn assert_hardly_more(what: &str, bytes: u64, whole: u64) {
    eprintln!("{what}: {bytes} of {whole}, {:.3} times", bytes as f64 / whole as f64);
    assert!(bytes >= whole, "{what}: {bytes} of {whole}: not everything was counted");
    assert!(bytes <= whole * 12 / 10, "{what}: {bytes} for {whole}");
}

/// A model behind a proxy that counts, of which the agent has a mounted volume that loads. Everything is read through the
/// agent, so that what is read can be counted.
async fn loading(gcs: &FakeGcs, shape: &ModelShape) -> (Node, FaultProxy, Running) {
    let proxy = FaultProxy::start(&gcs.endpoint()).await.unwrap();
    let node = Node::new(gcs, &proxy.url(), shape, &format!("{SLOW}\npassthrough = false")).await;
    let agent = node.place.agent().await;
    node.mount("");
    assert_eq!(node.volume().1, "loading", "otherwise this shows nothing");
    (node, proxy, agent)
}

#[tokio::test(flavor = "multi_thread")]
async fn touching_every_page_while_it_loads_costs_hardly_more_than_its_bytes() {
    require!(fuse());
    for which in [Touch::AllInOrder, Touch::AllShuffled] {
        let gcs = require!(FakeGcs::start().await);
        let (node, proxy, _agent) = loading(&gcs, &ModelShape::demo()).await;
        std::thread::scope(|threads| {
            for name in &node.model.files {
                let (origin, shown) = (node.model.directory.join(name), node.target().join(name));
                threads.spawn(move || touch(&origin, &shown, which, Advice::Normal));
            }
        });
        node.until_complete().await;
        let whole = node.model.file_bytes().unwrap();
        assert_hardly_more(&format!("{which:?}, from the origin"), proxy.bytes(), whole);
        assert_hardly_more(&format!("{which:?}, from the agent"), metric(&node.place, READ_BYTES), whole);
        let lengths =
            node.model.files.iter().map(|name| node.model.directory.join(name).metadata().unwrap().len());
        let chunks = lengths.map(|length| length.div_ceil(CHUNK_BYTES)).sum();
        let served = metric(&node.place, "weightd_expose_served_chunks_total");
        eprintln!("{which:?}, from the store: {served} chunks of {chunks}");
        // Who jumps about in more than the agent's buffers hold has it read chunks again.
        if matches!(which, Touch::AllInOrder) {
            assert_hardly_more("chunks from the store", served, chunks);
        }
    }
}

/// Who says that he jumps about gets pages, others what lies around them.
#[tokio::test(flavor = "multi_thread")]
async fn touching_a_few_pages_of_a_file_that_loads_costs_a_window_each() {
    require!(fuse());
    for (advice, each) in [(Advice::Random, PAGE as u64), (Advice::Normal, READ_AHEAD)] {
        let gcs = require!(FakeGcs::start().await);
        let shape = ModelShape { shards: 1, ..ModelShape::demo() };
        let (node, proxy, _agent) = loading(&gcs, &shape).await;
        let name = &node.model.files[0];
        let (origin, shown) = (node.model.directory.join(name), node.target().join(name));
        let touched = touch(&origin, &shown, Touch::Random(64), advice);
        let asked = metric(&node.place, READ_BYTES);
        eprintln!("{advice:?}: {touched} pages cost {asked} bytes of {}", origin.metadata().unwrap().len());
        assert!(asked > 0 && asked <= touched * each * 12 / 10, "{advice:?}: {asked} for {touched} pages");
        node.until_complete().await;
        assert_hardly_more("from the origin", proxy.bytes(), node.model.file_bytes().unwrap());
    }
}
