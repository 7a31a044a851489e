//! What the encoder writes.

use std::os::unix::fs::MetadataExt as _;

use super::{plan::PlanError, *};

#[test]
fn the_tar_stream_is_what_gnu_tar_writes() {
    for (disk_bytes, data) in disks() {
        let directory = tempfile::tempdir().unwrap();
        write_disk(&directory.path().join(DISK_NAME), disk_bytes, &data, &bytes_for(&data, 7));
        let ours = gunzip(&archive(disk_bytes, &data));
        let theirs = gnu_tar(directory.path(), &[]);
        let differs = ours.iter().zip(&theirs).position(|(a, b)| a != b);
        assert_eq!((differs, ours.len()), (None, theirs.len()), "{disk_bytes} bytes, {} ranges", data.len());
    }
}

#[test]
fn gnu_tar_unpacks_what_was_packed_with_its_holes() {
    for (disk_bytes, data) in disks() {
        let directory = tempfile::tempdir().unwrap();
        let (packed, disk) = (directory.path().join("disk.tar.gz"), directory.path().join(DISK_NAME));
        std::fs::write(&packed, archive(disk_bytes, &data)).unwrap();
        assert!(Command::new("gzip").arg("-t").arg(&packed).status().unwrap().success());
        let mut untar = Command::new("tar");
        untar.arg("-C").arg(directory.path()).args(["--format=oldgnu", "-xSzf"]).arg(&packed);
        assert!(untar.status().unwrap().success());

        let metadata = disk.metadata().unwrap();
        assert_eq!((metadata.len(), metadata.mtime(), metadata.mode() & 0o777), (disk_bytes, 1, 0o644));
        let data_bytes: u64 = data.iter().map(ByteRange::len).sum();
        // The file system counts the blocks of its own map of thousands of extents too.
        assert!(metadata.blocks() * 512 <= data_bytes + 16 * PAGE, "holes were filled");
        let (file, mut rest) = (File::open(&disk).unwrap(), bytes_for(&data, 7));
        for range in &data {
            let mut found = vec![0; size(range.len())];
            file.read_exact_at(&mut found, range.start).unwrap();
            let later = rest.split_off(found.len());
            assert!(found == rest, "other bytes at {range:?}");
            rest = later;
        }
    }
}

#[test]
fn every_byte_lies_where_the_plan_says() {
    for (disk_bytes, data) in disks() {
        let plan = Plan::new(disk_bytes, data.clone(), 1).unwrap();
        let bytes = bytes_for(&data, 7);
        let packed = archive_of(plan.clone(), &bytes);
        assert_eq!(packed.len() as u64, plan.archive_bytes());
        assert_eq!(bytes.len() as u64, plan.data_bytes());
        let mut before = 0;
        for range in &data {
            for at in (range.start..range.end).step_by(509) {
                let position = size(plan.position_of(at).unwrap());
                assert_eq!(packed[position], bytes[size(before + at - range.start)], "byte {at}");
            }
            // A sector is in one piece.
            let first = plan.position_of(range.start + 512).unwrap();
            assert_eq!(plan.position_of(range.start + 1023), Some(first + 511));
            before += range.len();
            assert_eq!(
                plan.position_of(range.end).is_some(),
                data.iter().any(|next| next.start == range.end)
            );
        }
        assert_eq!(plan.position_of(disk_bytes), None);
        assert_eq!(plan.position_of(u64::MAX), None);
    }
}

#[test]
fn an_encoder_goes_on_between_any_two_bytes() {
    let data = [ByteRange::at(PAGE, 40 * PAGE), ByteRange::at(100 * PAGE, 9 * PAGE)];
    let plan = Plan::new(GIB, data, 1).unwrap();
    let (bytes, whole) = (bytes_for(&data, 7), archive(GIB, &data));
    // The beginning, the middle of a sector, both sides of each stored block's and each range's ends, and the end.
    let blocks =
        [1, 2, 3].map(|block| block * 127 * 512 - 512).into_iter().flat_map(|at| [at - 1, at, at + 1]);
    let ends = [0, 1, 700, 40 * 4096 - 1, 40 * 4096, 40 * 4096 + 1, bytes.len() - 1, bytes.len()];
    for at in blocks.chain(ends) {
        let (mut encoder, mut out) = (Encoder::new(plan.clone()), Vec::new());
        for piece in bytes[..at].chunks(10_007) {
            encoder.write(piece, &mut out).unwrap();
        }
        let state = encoder.state();
        assert_eq!((state.data_bytes, state.archive_bytes), (at as u64, out.len() as u64));
        drop(encoder);
        let state: EncoderState = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();
        let mut encoder = Encoder::resume(plan.clone(), state).unwrap();
        assert_eq!(encoder.state(), state);
        encoder.write(&bytes[at..], &mut out).unwrap();
        encoder.finish(&mut out).unwrap();
        assert!(out == whole, "other bytes after going on at {at}");
    }
}

#[test]
fn writes_of_any_length_give_the_same_bytes() {
    let data = [ByteRange::at(0, 100 * PAGE)];
    let (bytes, whole) = (bytes_for(&data, 7), archive(GIB, &data));
    let mut random = StdRng::seed_from_u64(3);
    for _ in 0..50 {
        let (mut encoder, mut out, mut rest) =
            (Encoder::new(Plan::new(GIB, data, 1).unwrap()), Vec::new(), &bytes[..]);
        while !rest.is_empty() {
            let (now, later) = rest.split_at(random.random_range(0..=rest.len().min(150_000)));
            encoder.write(now, &mut out).unwrap();
            rest = later;
        }
        // Nothing more, also after the last: an empty write changes nothing.
        encoder.write(&[], &mut out).unwrap();
        encoder.finish(&mut out).unwrap();
        assert!(out == whole);
    }
}

#[test]
fn a_state_of_another_archive_is_refused() {
    let data = [ByteRange::at(PAGE, 40 * PAGE)];
    let plan = Plan::new(GIB, data, 1).unwrap();
    let (mut encoder, mut out) = (Encoder::new(plan.clone()), Vec::new());
    encoder.write(&bytes_for(&data, 7)[..5000], &mut out).unwrap();
    let state = encoder.state();
    let refused =
        |plan: &Plan, state| matches!(Encoder::resume(plan.clone(), state), Err(EncodeError::OtherPlan(_)));
    assert!(!refused(&plan, state));
    for other in [Plan::new(GIB, data, 2), Plan::new(2 * GIB, data, 1), Plan::new(GIB, [], 1)] {
        assert!(refused(&other.unwrap(), state));
    }
    for data_bytes in [0, 4999, 41 * PAGE, u64::MAX] {
        let mut other = state;
        other.data_bytes = data_bytes;
        assert!(refused(&plan, other));
    }
    let mut other = state;
    other.archive_bytes = 0;
    assert!(refused(&plan, other));
    assert!(!refused(&plan, Encoder::new(plan.clone()).state()));
}

#[test]
fn too_much_and_too_little_are_refused() {
    let plan = Plan::new(GIB, [ByteRange::at(0, PAGE)], 1).unwrap();
    let (mut encoder, mut out) = (Encoder::new(plan), Vec::new());
    encoder.write(&[1; 4000], &mut out).unwrap();
    let (state, len) = (encoder.state(), out.len());
    let refused = encoder.write(&[1; 97], &mut out);
    assert_eq!(refused, Err(EncodeError::TooMuch { given: 4097, planned: 4096 }));
    assert_eq!((encoder.state(), out.len()), (state, len));
    assert_eq!(encoder.finish(&mut out), Err(EncodeError::TooLittle { given: 4000, planned: 4096 }));
}

#[test]
fn ranges_are_joined_or_refused() {
    let joined =
        Plan::new(GIB, [(0, PAGE), (PAGE, PAGE), (3 * PAGE, 0), (4 * PAGE, PAGE)].map(of), 1).unwrap();
    assert_eq!(joined.data(), [(0, 2 * PAGE), (4 * PAGE, PAGE)].map(of));
    assert_eq!(joined, Plan::new(GIB, [(0, 2 * PAGE), (4 * PAGE, PAGE)].map(of), 1).unwrap());
    for bad in
        [(PAGE, PAGE), (3 * PAGE, 100), (2 * PAGE + 1, 511), (GIB, PAGE), (GIB - PAGE, 2 * PAGE)].map(of)
    {
        let plan = Plan::new(GIB, [of((0, 2 * PAGE)), bad], 1);
        assert_eq!(plan, Err(PlanError::Range(bad)));
    }
    for bytes in [0, 1, GIB - 512, GIB + 1, u64::MAX, u64::MAX - GIB + 1] {
        assert_eq!(Plan::new(bytes, [], 1), Err(PlanError::Size(bytes)));
    }
}

fn of((start, len): (u64, u64)) -> ByteRange {
    ByteRange::at(start, len)
}

#[test]
fn a_disk_of_64_tib_is_planned_without_its_bytes() {
    const TIB: u64 = 1 << 40;
    let data = (0..8192).map(|at| ByteRange::new(at * (8 << 30) + GIB, (at + 1) * (8 << 30)));
    let plan = Plan::new(64 * TIB, data, 1).unwrap();
    assert_eq!(plan.data_bytes(), 56 * TIB);
    // 8193 ranges with the empty one: four in the header and 21 in each of 390 extensions.
    assert_eq!(plan.head_bytes(), 391 * 512);
    let tar = (391 * 512 + 56 * TIB + 1024_u64).next_multiple_of(10_240);
    assert_eq!(plan.archive_bytes(), 10 + tar.div_ceil(65_024) * 5 + tar + 8);
    let header = ::tar::Header::from_byte_slice(&plan.head()[..512]);
    assert_eq!(header.entry_size().unwrap(), 56 * TIB);
    assert_eq!(header.as_gnu().unwrap().real_size().unwrap(), 64 * TIB);
    let last = 391 * 512 + 56 * TIB - 1;
    assert_eq!(plan.position_of(64 * TIB - 1), Some(10 + (last / 65_024 + 1) * 5 + last));
    assert_eq!(plan.position_of(64 * TIB - 8 * GIB), None);
}

#[test]
fn a_disk_without_holes_is_an_ordinary_member() {
    let halves = [ByteRange::new(0, GIB / 2), ByteRange::new(GIB / 2, GIB)];
    let plan = Plan::new(GIB, halves, 1).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut allocate = Command::new("fallocate");
    allocate.args(["-l", "1GiB"]).arg(directory.path().join(DISK_NAME));
    assert!(allocate.status().unwrap().success());
    let mut tar = gnu_tar_command(directory.path(), &[]).stdout(Stdio::piped()).spawn().unwrap();
    let mut theirs = [0; 512];
    tar.stdout.take().unwrap().read_exact(&mut theirs).unwrap();
    // It ends when nobody reads the rest.
    tar.wait().unwrap();
    assert_eq!(plan.head(), theirs);

    let large = Plan::new(16 * GIB, [ByteRange::new(0, 16 * GIB)], 1).unwrap();
    let header = ::tar::Header::from_byte_slice(large.head());
    assert_eq!((header.entry_type(), header.entry_size().unwrap()), (::tar::EntryType::Regular, 16 * GIB));
}

#[test]
fn gzip_carries_nothing_of_this_machine() {
    let packed = archive(GIB, &[ByteRange::at(0, PAGE)]);
    assert_eq!(packed[..10], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255]);
    assert_eq!(gzip::Crc32::of(b"123456789").0, 0xcbf4_3926, "the check value of CRC-32");
}
