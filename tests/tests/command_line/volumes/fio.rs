//! Every block of a file that fio wrote says where it lies and has a checksum, and fio knows how to look.

use std::{
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;
use weightd_harness::{FakeGcs, ModelShape, fio, require};

use super::{Node, fuse, metric};

const NAME: &str = "blocks.fio";
const BYTES: u64 = 48 << 20;
/// Slow enough that most blocks are waited for.
const SLOWLY: &str = "[fetch]\nbandwidth = \"16MiB/s\"\n[volumes]\nread_ahead = \"1MiB\"";

/// How the blocks are read: each of them once, whatever the order.
const WAYS: [&[&str]; 6] = [
    &["--ioengine=psync", "--rw=read"],
    &["--ioengine=psync", "--rw=randread"],
    &["--ioengine=mmap", "--rw=read"],
    &["--ioengine=mmap", "--rw=randread"],
    &["--ioengine=psync", "--rw=read", "--direct=1"],
    &["--ioengine=psync", "--rw=randread", "--direct=1"],
];

fn run(fio: &Path, file: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(fio);
    command.args(["--name=blocks", "--bs=64k", "--verify=crc32c", "--verify_state_save=0"]);
    command.args(["--output-format=json", &format!("--size={BYTES}")]).args(more);
    command.arg(format!("--filename={}", file.display())).output().unwrap()
}

/// Reads every block in a way; the error is what fio found.
fn verify(fio: &Path, file: &Path, way: &[&str]) -> Result<(), String> {
    let ended = run(fio, file, &[&["--readonly", "--verify_fatal=1"], way].concat());
    if !ended.status.success() {
        return Err(format!("{way:?}: {}", String::from_utf8_lossy(&ended.stderr)));
    }
    let told: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!(told["jobs"][0]["read"]["io_bytes"].as_u64(), Some(BYTES), "{way:?}: {told}");
    Ok(())
}

/// In every way at once.
fn verify_every_way(fio: &Path, file: &Path) {
    std::thread::scope(|threads| {
        for way in WAYS {
            threads.spawn(move || verify(fio, file, way).unwrap());
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn fio_verifies_what_it_wrote_while_it_loads_and_after() {
    require!(fuse());
    let fio = require!(fio());
    for (more, serving) in [("", "passthrough"), ("\npassthrough = false", "fuse")] {
        let gcs = require!(FakeGcs::start().await);
        let node = Node::new(&gcs, &gcs.endpoint(), &ModelShape::tiny(), &format!("{SLOWLY}{more}")).await;
        let written = node.place.at("written");
        std::fs::create_dir(&written).unwrap();
        let (written, shown) = (written.join(NAME), node.target().join(NAME));
        let wrote = run(&fio, &written, &["--rw=write", "--do_verify=0"]);
        assert!(wrote.status.success(), "{}", String::from_utf8_lossy(&wrote.stderr));
        gcs.place_directory("models", "demo", written.parent().unwrap()).unwrap();

        let _agent = node.place.agent().await;
        node.mount("");
        assert_eq!(node.volume().1, "loading", "otherwise this shows nothing");
        verify_every_way(&fio, &shown);
        assert!(metric(&node.place, "weightd_expose_demands_total") > 0, "all was here before it was read");
        node.until_complete().await;
        assert_eq!(node.volume().0, serving);
        if serving == "passthrough" {
            node.until_passed_through(&[NAME.to_owned()]).await;
        }
        verify_every_way(&fio, &shown);
    }
}

/// What the other test would be worth otherwise.
#[test]
fn fio_finds_a_flipped_bit_in_each_of_these_ways() {
    use std::os::unix::fs::FileExt;
    let fio = require!(fio());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join(NAME);
    let wrote = run(&fio, &file, &["--rw=write", "--do_verify=0"]);
    assert!(wrote.status.success(), "{}", String::from_utf8_lossy(&wrote.stderr));
    WAYS.iter().for_each(|way| verify(&fio, &file, way).unwrap());
    let spoiled = std::fs::File::options().read(true).write(true).open(&file).unwrap();
    let (mut byte, within_a_block) = ([0], BYTES / 3 + 1000);
    spoiled.read_exact_at(&mut byte, within_a_block).unwrap();
    spoiled.write_all_at(&[byte[0] ^ 1], within_a_block).unwrap();
    for way in WAYS {
        let found = verify(&fio, &file, way).unwrap_err();
        assert!(found.contains("verify failed"), "{found}");
    }
}
