//! Every byte, read in every way.

use std::{
    fs::{File, OpenOptions},
    io::Read,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use weightd_harness::{FakeGcs, ModelShape, assert_same_tensors, require};

use super::{Node, SLOW, fuse, map};

const O_DIRECT: i32 = 0o40000;

/// Pairs of the same file at the origin and in the volume.
fn files(node: &Node) -> Vec<(PathBuf, PathBuf)> {
    let pair = |file: &String| (node.model.directory.join(file), node.target().join(file));
    node.model.files.iter().map(pair).collect()
}

fn output(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Reads through a mapping, a page here and a page there.
fn touch(origin: &Path, shown: &Path) {
    let expected = std::fs::read(origin).unwrap();
    let file = File::open(shown).unwrap();
    let mapped = map(&file);
    assert_eq!(mapped.len(), expected.len());
    let mut random = StdRng::seed_from_u64(expected.len() as u64);
    for _ in 0..64 {
        let at = random.random_range(0..expected.len());
        assert_eq!(mapped[at], expected[at], "{} at {at}", shown.display());
    }
    assert!(mapped[..] == expected[..], "{}", shown.display());
}

/// Reads around the page cache, at offsets and of lengths that such reads must have.
fn read_directly(origin: &Path, shown: &Path) {
    let expected = std::fs::read(origin).unwrap();
    let file = OpenOptions::new().read(true).custom_flags(O_DIRECT).open(shown).unwrap();
    let mut read = Vec::new();
    let mut memory = memmap2::MmapMut::map_anon(1 << 20).unwrap();
    loop {
        match file.read_at(&mut memory, read.len() as u64).unwrap() {
            0 => break,
            length => read.extend_from_slice(&memory[..length]),
        }
    }
    assert!(read == expected, "{}", shown.display());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_of_reading_gives_the_origins_bytes_while_it_loads_and_after() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let node = Node::new(&gcs, &gcs.endpoint(), &ModelShape::demo(), SLOW).await;
    let _agent = node.place.agent().await;
    node.mount("");
    assert_eq!(node.volume().1, "loading", "otherwise this shows nothing");
    // The last reads straight from the store; before it the kernel may still go by what it knew while it loaded.
    for round in ["while it loads", "after", "past the agent"] {
        let files = files(&node);
        std::thread::scope(|threads| {
            for (origin, shown) in &files {
                threads.spawn(|| touch(origin, shown));
                threads.spawn(|| read_directly(origin, shown));
                threads.spawn(move || {
                    let odd = output(Command::new("dd").args(["bs=4099", "status=none"]).arg(if_is(shown)));
                    assert!(odd == std::fs::read(origin).unwrap(), "dd: {}", shown.display());
                });
                let copy = node.place.at(&format!("copy-{}", origin.file_name().unwrap().display()));
                threads.spawn(move || {
                    // `cat` splices from file to file; `cp` clones or copies within the kernel.
                    output(Command::new("cp").arg("--reflink=auto").arg(shown).arg(&copy));
                    output(Command::new("cmp").arg(&copy).arg(origin));
                });
                threads.spawn(|| send(origin, shown));
            }
        });
        eprintln!("right {round}");
        node.until_complete().await;
        if round == "after" {
            node.until_passed_through(&node.model.files).await;
        }
    }
    assert_eq!(node.volume().0, "passthrough");
}

fn if_is(path: &Path) -> String {
    format!("if={}", path.display())
}

/// `sendfile` into a pipe.
fn send(origin: &Path, shown: &Path) {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let file = File::open(shown).unwrap();
    let sender =
        std::thread::spawn(move || while rustix::fs::sendfile(&writer, &file, None, 1 << 20).unwrap() > 0 {});
    let mut sent = Vec::new();
    reader.read_to_end(&mut sent).unwrap();
    sender.join().unwrap();
    assert!(sent == std::fs::read(origin).unwrap(), "sendfile: {}", shown.display());
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_readers_at_random_offsets_get_the_origins_bytes() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let node = Node::new(&gcs, &gcs.endpoint(), &ModelShape::demo(), SLOW).await;
    let _agent = node.place.agent().await;
    node.mount("");
    let files: Arc<Vec<_>> = Arc::new(files(&node));
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let readers: Vec<_> = (0..64)
        .map(|reader| {
            let files = Arc::clone(&files);
            std::thread::spawn(move || {
                let mut random = StdRng::seed_from_u64(seed + reader);
                for _ in 0..20 {
                    let (origin, shown) = &files[random.random_range(0..files.len())];
                    let (origin, shown) = (File::open(origin).unwrap(), File::open(shown).unwrap());
                    let length = origin.metadata().unwrap().len();
                    let at = random.random_range(0..length);
                    let wanted = random.random_range(1..300_000).min(length - at);
                    let (mut expected, mut found) = (vec![0; wanted as usize], vec![0; wanted as usize]);
                    origin.read_exact_at(&mut expected, at).unwrap();
                    shown.read_exact_at(&mut found, at).unwrap();
                    assert!(expected == found, "{wanted} bytes at {at}, seed {seed}");
                }
            })
        })
        .collect();
    for reader in readers {
        reader.join().unwrap();
    }
}

/// Who waits for one chunk must not hold another: with two buffers, two such readers would wait for each other.
#[tokio::test(flavor = "multi_thread")]
async fn readers_across_chunks_share_the_least_memory_there_can_be() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let more =
        "[volumes]\npassthrough = false\nbuffers = \"16MiB\"\nread_timeout = \"20s\"\nread_ahead = \"1MiB\"";
    let node = Node::new(&gcs, &gcs.endpoint(), &ModelShape::demo(), more).await;
    let _agent = node.place.agent().await;
    node.mount("--mode fuse --wait");
    let name = node.model.files.iter().find(|name| name.ends_with(".safetensors")).unwrap();
    let (origin, shown) = (node.model.directory.join(name), node.target().join(name));
    let origin = Arc::new(std::fs::read(origin).unwrap());
    let chunks = origin.len() >> 23;
    assert!(chunks >= 3, "{chunks} chunks");
    let readers = (0..4).map(|reader| {
        let (origin, shown) = (Arc::clone(&origin), shown.clone());
        tokio::task::spawn_blocking(move || {
            let file = File::open(shown).unwrap();
            for round in 0..10 {
                let at = (((reader + round) % (chunks - 1) + 1) << 23) - (64 << 10);
                // What was read before is in the page cache.
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
                let mut bytes = vec![0; 128 << 10];
                file.read_exact_at(&mut bytes, at as u64).unwrap();
                assert!(bytes == origin[at..][..bytes.len()]);
            }
        })
    });
    for reader in readers.collect::<Vec<_>>() {
        reader.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_aligned_layout_shows_the_same_tensors_before_they_are_here() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let node = Node::new(&gcs, &gcs.endpoint(), &ModelShape::demo(), SLOW).await;
    let _agent = node.place.agent().await;
    node.place.ask(&format!("mount {} {}", super::SOURCE, node.target().display())).done();
    assert_eq!(node.volume().1, "loading");
    assert_same_tensors(&node.model.directory, &node.target());
}
