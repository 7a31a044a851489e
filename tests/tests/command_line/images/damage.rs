//! Images in which something was changed after they were built.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use weightd_harness::{FakeGcs, ModelShape, require};

use super::{SOURCE, Workshop};
use crate::place::Place;

/// Where a disk holds bytes that are not zero: its metadata, and its files.
fn used_blocks(image: &Path) -> Vec<u64> {
    let (file, len) = (File::open(image).unwrap(), fs::metadata(image).unwrap().len());
    let (mut blocks, mut at, mut block) = (Vec::new(), 0, vec![0; 4096]);
    while at < len {
        let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at));
        let Ok(start) = data else { break };
        let end = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(start)).unwrap();
        for offset in (start / 4096 * 4096..end).step_by(4096) {
            file.read_exact_at(&mut block, offset).unwrap();
            if block.iter().any(|byte| *byte != 0) {
                blocks.push(offset);
            }
        }
        at = end;
    }
    blocks
}

fn flip(image: &Path, offset: u64, bit: u8) {
    let file = OpenOptions::new().read(true).write(true).open(image).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << bit)], offset).unwrap();
}

fn verify(place: &Place, image: &Path) -> crate::program::Ended {
    place.run(&format!("image verify {}", image.display()))
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_bit_is_flipped_in_an_image_is_found() {
    let gcs = require!(FakeGcs::start().await);
    let workshop = Workshop::new(&gcs, &gcs.endpoint(), &ModelShape::tiny(), "").await;
    let (place, image) = (&workshop.place, workshop.place.at("disk.raw"));
    place.run(&format!("image build --model {SOURCE} --output {}", image.display())).done();
    verify(place, &image).done();
    let blocks = used_blocks(&image);
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    // The boot note, the superblock, and any block that is not empty; the first of them, which are metadata, each once.
    let fixed = [0, 1000, 1024 + 56, 1024 + 0x68];
    let first = blocks.iter().take(20).copied();
    let any = (0..40).map(|_| blocks[random.random_range(0..blocks.len())]).collect::<Vec<_>>();
    let chosen = first.chain(any).map(|block| {
        let mut bytes = vec![0; 4096];
        File::open(&image).unwrap().read_exact_at(&mut bytes, block).unwrap();
        // Behind the end of a file nothing means anything.
        let last = bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64;
        block + random.random_range(0..=last)
    });
    let chosen: Vec<u64> = fixed.into_iter().chain(chosen).collect();
    for offset in chosen {
        let bit = random.random_range(0..8);
        // Before: the flip may hit what it is recognised by.
        let provenance = in_provenance(&image, offset);
        flip(&image, offset, bit);
        let found = verify(place, &image);
        assert!(found.code != Some(0) || provenance, "seed {seed}: bit {bit} of byte {offset} was not found");
        assert!(matches!(found.code, Some(0 | 64 | 65)), "seed {seed}, byte {offset}: {}", found.words);
        assert!(!found.words.contains("panicked"), "{}", found.words);
        flip(&image, offset, bit);
    }
    verify(place, &image).done();
}

/// What the provenance says of who built the image.
const BUILDER: &[u8] = b"\"weightctl image build\"";

/// The one file that nothing is checked against: it is for people.
fn in_provenance(image: &Path, offset: u64) -> bool {
    let mut block = vec![0; 4096];
    let file = File::open(image).unwrap();
    // It is longer than a block, so what surrounds it is looked at too.
    (0..4).any(|back| {
        let Some(start) = (offset / 4096 * 4096).checked_sub(back * 4096) else { return false };
        file.read_exact_at(&mut block, start).unwrap();
        block.windows(BUILDER.len()).any(|words| words == BUILDER)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_archive_is_found() {
    let gcs = require!(FakeGcs::start().await);
    let workshop = Workshop::new(&gcs, &gcs.endpoint(), &ModelShape::tiny(), "").await;
    let (place, archive) = (&workshop.place, workshop.place.at("disk.tar.gz"));
    place.run(&format!("image build --model {SOURCE} --output {}", archive.display())).done();
    let len = fs::metadata(&archive).unwrap().len();
    for offset in [0, 3, 40, 700, len / 2, len - 4] {
        flip(&archive, offset, 1);
        let found = verify(place, &archive);
        assert!(matches!(found.code, Some(64 | 65)), "byte {offset}: {:?} {}", found.code, found.words);
        flip(&archive, offset, 1);
    }
    verify(place, &archive).done();
    OpenOptions::new().write(true).open(&archive).unwrap().set_len(len / 2).unwrap();
    verify(place, &archive).failed(65, &["ends early"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_image_is_refused_by_name() {
    let place = Place::new("");
    let file = place.at("some.raw");
    fs::write(&file, vec![0; 1 << 20]).unwrap();
    for command in ["ls", "verify"] {
        let line = format!("image {command} {}", file.display());
        place.run(&line).failed(64, &["some.raw", "not an image"]);
        place
            .run(&format!("image {command} {}", place.at("missing.raw").display()))
            .failed(66, &["missing.raw"]);
    }
    fs::write(&file, b"weightd-image 1 99999999999999\n").unwrap();
    place.run(&format!("image ls {}", file.display())).failed(64, &["some.raw"]);
}
