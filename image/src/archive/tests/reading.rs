//! What the reader makes of good files and of bad ones.

use super::*;

#[test]
fn what_was_written_is_read() {
    for (disk_bytes, data) in disks() {
        let bytes = bytes_for(&data, 7);
        let packed = archive(disk_bytes, &data);
        assert!(read(&packed).unwrap() == (disk_bytes, data, bytes));
    }
}

#[test]
fn archives_of_gnu_tar_are_read() {
    for (disk_bytes, data) in disks() {
        let directory = tempfile::tempdir().unwrap();
        let bytes = bytes_for(&data, 7);
        write_disk(&directory.path().join(DISK_NAME), disk_bytes, &data, &bytes);
        // With holes as the file system tells them, with holes found by looking for zeros, and with larger records.
        for options in [&["--hole-detection=seek"][..], &["--hole-detection=raw"], &["-b", "64"]] {
            // That looks at all of the disk, so it is done with one.
            if options[0].ends_with("raw") && (disk_bytes, data.len()) != (GIB, 2) {
                continue;
            }
            let (found_bytes, found_data, found) = read(&gzip(&gnu_tar(directory.path(), options))).unwrap();
            assert_eq!((found_bytes, &found_data), (disk_bytes, &data), "{options:?}");
            assert!(found == bytes);
        }
    }
}

#[test]
fn a_file_of_several_gzip_members_is_read_as_one() {
    let data = [ByteRange::at(0, 20 * PAGE)];
    let tar = gunzip(&archive(GIB, &data));
    let (head, rest) = tar.split_at(30_000);
    let parts = [gzip(head), gzip(&[]), gzip(rest)].concat();
    assert!(read(&parts).unwrap().2 == bytes_for(&data, 7));
}

#[test]
fn a_disk_without_holes_is_read() {
    let mut packed = Vec::new();
    let mut encoder = Encoder::new(Plan::new(GIB, [ByteRange::new(0, GIB)], 1).unwrap());
    encoder.write(&[0x5a; 1 << 20], &mut packed).unwrap();
    let mut reader = Reader::open(&packed[..]).unwrap();
    assert_eq!((reader.disk_bytes(), reader.data()), (GIB, &[ByteRange::new(0, GIB)][..]));
    let mut buffer = [0; 4096];
    for page in 0..255 {
        assert_eq!(reader.next_run(&mut buffer).unwrap(), Some(ByteRange::at(page * PAGE, PAGE)));
        assert_eq!(buffer, [0x5a; 4096]);
    }
}

#[test]
fn a_file_cut_short_ends_early() {
    let packed = archive(GIB, &[ByteRange::at(0, 20 * PAGE)]);
    for len in (2..packed.len()).step_by(97).chain([packed.len() - 1, packed.len() - 8, packed.len() - 9]) {
        assert!(matches!(read(&packed[..len]), Err(ArchiveError::EndedEarly)), "cut at {len}");
    }
    let tar = gunzip(&packed);
    for len in [0, 511, 512, 20_000] {
        assert!(matches!(read(&gzip(&tar[..len])), Err(ArchiveError::EndedEarly)), "tar cut at {len}");
    }
    assert!(matches!(read(&packed[..1]), Err(ArchiveError::NotGzip)));
    assert!(matches!(read(&[]), Err(ArchiveError::NotGzip)));
}

#[test]
fn a_flipped_bit_never_changes_what_is_read() {
    let packed = archive(GIB, &[ByteRange::at(0, 20 * PAGE)]);
    let good = read(&packed).unwrap();
    let mut random = StdRng::seed_from_u64(11);
    for _ in 0..2000 {
        let mut bad = packed.clone();
        // Past gzip's header, whose fields may say other things.
        let at = random.random_range(10..bad.len());
        bad[at] ^= 1 << random.random_range(0..8);
        // Five bits of each stored block's header are padding, which says nothing.
        assert!(read(&bad).map_or(true, |found| found == good), "the bit at {at} passed");
    }
    let mut data = packed.clone();
    data[30_000] ^= 1;
    assert!(matches!(read(&data), Err(ArchiveError::Damaged(_))));
    let mut length = packed;
    *length.last_mut().unwrap() ^= 1;
    assert!(matches!(read(&length), Err(ArchiveError::Damaged(_))));
}

/// The tar stream of a small disk, changed.
fn changed(change: impl FnOnce(&mut ::tar::Header)) -> Result<(u64, Vec<ByteRange>, Vec<u8>), ArchiveError> {
    let mut tar = gunzip(&archive(GIB, &[ByteRange::at(0, PAGE), ByteRange::at(4 * PAGE, PAGE)]));
    let mut header = ::tar::Header::from_byte_slice(&tar[..512]).clone();
    change(&mut header);
    header.set_cksum();
    tar[..512].copy_from_slice(header.as_bytes());
    read(&gzip(&tar))
}

#[test]
fn each_wrong_header_has_its_error() {
    use ArchiveError::{Inconsistent, OtherMember, Size};
    assert!(changed(|_| {}).is_ok());
    let other = changed(|header| header.set_path("disk.img").unwrap());
    assert!(matches!(other, Err(OtherMember { found, kind: 'S' }) if found == "disk.img"));
    let folder = changed(|header| header.set_entry_type(::tar::EntryType::Directory));
    assert!(matches!(folder, Err(OtherMember { kind: '5', .. })));
    let gnu = |change: fn(&mut ::tar::GnuHeader)| changed(|header| change(header.as_gnu_mut().unwrap()));
    assert!(matches!(gnu(|header| header.set_real_size(GIB + 512)), Err(Size(bytes)) if bytes == GIB + 512));
    assert!(matches!(gnu(|header| header.set_real_size(0)), Err(Size(0))));
    assert!(matches!(changed(|header| header.set_size(PAGE)), Err(Inconsistent(_))));
    assert!(matches!(gnu(|header| header.sparse[1].set_offset(512)), Err(Inconsistent(_))));
    assert!(matches!(gnu(|header| header.sparse[1].set_offset(GIB)), Err(Inconsistent(_))));
    assert!(matches!(gnu(|header| header.sparse[1].set_offset(u64::MAX)), Err(Inconsistent(_))));
    assert!(matches!(gnu(|header| header.sparse[1].set_length(PAGE + 1)), Err(Inconsistent(_))));
    assert!(matches!(gnu(|header| header.sparse[0].numbytes = *b"0000001000x\0"), Err(Inconsistent(_))));
    assert!(gnu(|header| header.set_is_extended(true)).is_err());
}

#[test]
fn other_files_are_told_apart() {
    assert!(matches!(read(b"PK\x03\x04 a zip file"), Err(ArchiveError::NotGzip)));
    assert!(matches!(read(&gzip(&[b'x'; 4096])), Err(ArchiveError::NotTar)));
    assert!(matches!(read(&gzip(&[0; 10_240])), Err(ArchiveError::NotTar)));
    let mut two = gunzip(&archive(GIB, &[ByteRange::at(0, PAGE)]));
    two.truncate(512 + 4096);
    two.extend(gunzip(&archive(GIB, &[])));
    assert!(matches!(read(&gzip(&two)), Err(ArchiveError::MoreMembers)));
}

#[test]
fn errors_of_the_source_stay_what_they_are() {
    struct Broken;
    impl std::io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::ConnectionReset.into())
        }
    }
    let packed = archive(GIB, &[ByteRange::at(0, 100 * PAGE)]);
    assert!(matches!(Reader::open(Broken), Err(ArchiveError::Read(_))));
    let mut reader = Reader::open(packed[..200_000].chain(Broken)).unwrap();
    let mut buffer = vec![0; 1 << 20];
    assert!(matches!(reader.next_run(&mut buffer), Err(ArchiveError::Read(_))));
}

#[test]
fn a_map_without_end_is_refused_before_it_fills_memory() {
    let mut tar =
        Plan::new(GIB, (0..25).map(|at| ByteRange::at(at * 2 * PAGE, PAGE)), 1).unwrap().head().to_vec();
    let extension = tar[512..1024].to_vec();
    let mut endless = ::tar::GnuExtSparseHeader::new();
    endless.as_mut_bytes().copy_from_slice(&extension);
    for slot in endless.sparse_mut() {
        slot.set_offset(GIB);
        slot.set_length(0);
    }
    endless.set_is_extended(true);
    tar.truncate(1024);
    tar.extend(endless.as_bytes().repeat(50_001));
    assert!(matches!(read(&gzip(&tar)), Err(ArchiveError::Inconsistent("more than a million ranges"))));
}

#[test]
fn no_bytes_make_it_panic() {
    let data: Vec<_> = (0..30).map(|at| ByteRange::at(at * 2 * PAGE, PAGE)).collect();
    let packed = archive(GIB, &data);
    let tar = gunzip(&packed);
    let mut random = StdRng::seed_from_u64(5);
    for round in 0..3000 {
        // Damage to the file, to what is in it, and to the headers with their sum put right.
        let (mut bytes, reach) = if round % 3 == 0 { (packed.clone(), 600) } else { (tar.clone(), 1536) };
        for _ in 0..random.random_range(1..8) {
            let at = random.random_range(0..reach);
            bytes[at] =
                *[0, 0xff, 0x80, b'7', b'0', random.random()].get(random.random_range(0..6_usize)).unwrap();
        }
        if round % 3 == 2 {
            let mut header = ::tar::Header::from_byte_slice(&bytes[..512]).clone();
            header.set_cksum();
            bytes[..512].copy_from_slice(header.as_bytes());
        }
        let _ = if round % 3 == 0 { read(&bytes) } else { read(&gzip(&bytes)) };
    }
    for _ in 0..2000 {
        let mut noise = vec![0; random.random_range(0..2000)];
        random.fill_bytes(&mut noise);
        let _ = read(&noise);
        let _ = read(&gzip(&noise));
    }
}
