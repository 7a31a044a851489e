//! Archives are written, compared with GNU tar's, unpacked by it, and read again.

mod encoding;
mod reading;

use std::{
    fs::File,
    io::Read as _,
    os::unix::fs::FileExt as _,
    path::Path,
    process::{Command, Stdio},
};

use flate2::read::GzDecoder;
use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::StdRng};

use super::*;
use weightd_types::ByteRange;

const GIB: u64 = DISK_UNIT_BYTES;
const PAGE: u64 = 4096;

/// Disks that differ in what the map of the archive must say.
fn disks() -> Vec<(u64, Vec<ByteRange>)> {
    let pages =
        |count: u64| (0..count).map(|page| ByteRange::at(page * (64 << 10), PAGE)).collect::<Vec<_>>();
    let and_end = |mut data: Vec<ByteRange>| {
        data.push(ByteRange::new(GIB - PAGE, GIB));
        data
    };
    vec![
        // No data; a hole at the end; data at the end; data where base 256 is needed.
        (GIB, vec![]),
        (GIB, vec![ByteRange::at(0, PAGE), ByteRange::at(1 << 20, 300 * PAGE)]),
        (2 * GIB, vec![ByteRange::new(2 * GIB - 5 * PAGE, 2 * GIB)]),
        (16 * GIB, vec![ByteRange::at(PAGE, PAGE), ByteRange::new(12 * GIB, 12 * GIB + 2 * PAGE)]),
        // On both sides of four ranges, of 4 + 21, and of 4 + 21 + 21, with the empty one at the end.
        (GIB, pages(3)),
        (GIB, and_end(pages(3))),
        (GIB, pages(24)),
        (GIB, and_end(pages(24))),
        (GIB, and_end(pages(46))),
        (GIB, and_end(pages(3000))),
    ]
}

/// A length of what is in memory here.
fn size(len: u64) -> usize {
    usize::try_from(len).unwrap()
}

/// Random bytes for all ranges together.
fn bytes_for(data: &[ByteRange], seed: u64) -> Vec<u8> {
    let len: u64 = data.iter().map(ByteRange::len).sum();
    let mut bytes = vec![0; size(len)];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

fn archive_of(plan: Plan, bytes: &[u8]) -> Vec<u8> {
    let (mut encoder, mut out) = (Encoder::new(plan), Vec::new());
    encoder.write(bytes, &mut out).unwrap();
    encoder.finish(&mut out).unwrap();
    out
}

/// The archive of a disk with random data.
fn archive(disk_bytes: u64, data: &[ByteRange]) -> Vec<u8> {
    archive_of(Plan::new(disk_bytes, data.to_vec(), 1).unwrap(), &bytes_for(data, 7))
}

/// The disk as a sparse file.
fn write_disk(path: &Path, disk_bytes: u64, data: &[ByteRange], bytes: &[u8]) {
    let file = File::create(path).unwrap();
    file.set_len(disk_bytes).unwrap();
    let mut rest = bytes;
    for range in data {
        let (now, later) = rest.split_at(size(range.len()));
        file.write_all_at(now, range.start).unwrap();
        rest = later;
    }
}

fn gunzip(archive: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    GzDecoder::new(archive).read_to_end(&mut tar).unwrap();
    tar
}

fn gzip(tar: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(tar).unwrap();
    encoder.finish().unwrap()
}

/// What GNU tar makes of `disk.raw` in a directory.
fn gnu_tar(directory: &Path, options: &[&str]) -> Vec<u8> {
    let output = gnu_tar_command(directory, options).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success());
    output.stdout
}

fn gnu_tar_command(directory: &Path, options: &[&str]) -> Command {
    let fixed = ["--format=oldgnu", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@1", "--mode=0644"];
    let mut command = Command::new("tar");
    command.arg("-C").arg(directory).args(fixed).args(options).args(["-S", "-c", "-f", "-", DISK_NAME]);
    command
}

/// All that a reader gives: the disk's length, its ranges and their bytes.
fn read(archive: &[u8]) -> Result<(u64, Vec<ByteRange>, Vec<u8>), ArchiveError> {
    let mut reader = Reader::open(archive)?;
    let (mut bytes, mut buffer, mut end) = (Vec::new(), vec![0; 100_000], 0);
    while let Some(run) = reader.next_run(&mut buffer)? {
        assert!(run.start >= end && run.end <= reader.disk_bytes(), "runs go forward within the disk");
        end = run.end;
        bytes.extend_from_slice(&buffer[..size(run.len())]);
    }
    assert!(reader.next_run(&mut buffer)?.is_none(), "the end is the end");
    Ok((reader.disk_bytes(), reader.data().to_vec(), bytes))
}
