use std::{
    fs::OpenOptions,
    os::fd::{AsFd, AsRawFd},
};

use bytes::Bytes;
use memmap2::MmapOptions;
use weightd_types::{CHUNK_BYTES, SafetensorsHeader};

use super::*;
use crate::handoff::{memory::Usage, trust::Trust};

/// A blob of one tensor behind a header of one page; its data is two chunks, or begins on an odd place.
fn arrangement(header_bytes: usize) -> Arrangement {
    let data = 2 * CHUNK_BYTES;
    let json = format!(r#"{{"t":{{"dtype":"U8","shape":[{data}],"data_offsets":[0,{data}]}}}}"#);
    let mut raw = ((header_bytes - 8) as u64).to_le_bytes().to_vec();
    raw.extend_from_slice(json.as_bytes());
    raw.resize(header_bytes, b' ');
    let blob = header_bytes as u64 + data;
    Arrangement::of(&SafetensorsHeader::parse(Bytes::from(raw), blob).unwrap(), blob)
}

fn provider() -> Provider {
    Provider::new(None, None, 0)
}

fn arena(header_bytes: usize) -> Arc<Arena> {
    let (arrangement, provider) = (arrangement(header_bytes), provider());
    let memory = provider.make("a", arrangement.arena_bytes(), Usage::default()).unwrap().unwrap();
    Arc::new(Arena::new("a".to_owned(), arrangement, memory, provider, Arc::default()).unwrap())
}

/// Bytes of the arena as a client sees them.
fn seen(arena: &Arena, from: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rustix::io::pread(arena.memory().descriptor(), bytes.as_mut_slice(), from).unwrap();
    bytes
}

#[test]
fn a_chunk_is_written_by_one_at_a_time_and_never_again_once_it_is_here() {
    let arena = arena(4096);
    let claim = arena.claim(1).unwrap();
    assert!(arena.claim(1).is_none());
    drop(claim);
    assert_eq!(arena.state(1), Chunk::Absent, "who gave up leaves it to the next");
    let mut buffer = arena.claim(1).unwrap().into_buffer(0).unwrap();
    assert_eq!(buffer.extend_from_slice(&[7; 100]), 100);
    buffer.landed(Crc32c::of(b"x"));
    drop(buffer);
    assert_eq!(arena.state(1), Chunk::Here);
    assert!(arena.claim(1).is_none());
    assert_eq!(seen(&arena, CHUNK_BYTES, 101), [&[7; 100][..], &[0]].concat());
}

#[test]
fn who_was_lent_memory_of_one_arena_says_nothing_of_another() {
    let (old, new) = (arena(4096), arena(4096));
    let buffer = old.claim(0).unwrap().into_buffer(0).unwrap();
    buffer.landed(Crc32c::EMPTY);
    assert_eq!((old.state(0), new.state(0)), (Chunk::Here, Chunk::Absent));
}

#[test]
fn what_does_not_lie_as_in_the_file_is_put_in_its_place() {
    let arena = arena(4096 + 8);
    assert!(arena.arrangement().straight(1).is_none());
    let claim = arena.claim(1).unwrap().into_buffer(0).unwrap_err();
    let range = arena.arrangement().chunk_range(1);
    let bytes: Vec<u8> = (0..range.len()).map(|at| (at % 251) as u8).collect();
    claim.put(&bytes);
    claim.landed(Crc32c::of(&bytes));
    let place = arena.arrangement().place_of(range.start);
    assert_eq!(seen(&arena, place, bytes.len()), bytes);
}

#[test]
fn what_is_not_what_was_confirmed_makes_all_of_it_wrong_whenever_it_comes() {
    let right = vec![Crc32c::of(b"0"), Crc32c::of(b"1"), Crc32c::of(b"2")];
    let before = arena(4096);
    before.claim(0).unwrap().landed(Crc32c::of(b"other"));
    before.seen().expect(right.clone());
    let is_wrong = |arena: &Arena| matches!(arena.seen().trust(), Trust::Wrong(_));
    assert!(is_wrong(&before));
    let after = arena(4096);
    after.claim(0).unwrap().landed(right[0]);
    after.seen().expect(right.clone());
    assert_eq!(after.seen().trust(), Trust::Verified);
    after.claim(1).unwrap().landed(right[1]);
    assert_eq!(after.seen().trust(), Trust::Verified);
    after.claim(2).unwrap().landed(right[0]);
    assert!(is_wrong(&after));
}

#[test]
fn nobody_but_the_agent_writes_to_it_and_the_next_agent_does_not_either() {
    let arena = arena(4096);
    (0..3).for_each(|chunk| arena.claim(chunk).unwrap().landed(Crc32c::EMPTY));
    let lent = arena.memory().descriptor().try_clone_to_owned().unwrap();
    let path = format!("/proc/self/fd/{}", lent.as_raw_fd());
    // Root may open it for writing all the same, and gets nothing of that.
    if let Ok(again) = OpenOptions::new().read(true).write(true).open(path) {
        assert!(MmapOptions::new().map_raw(&again).is_err(), "no mapping for writing");
        assert!(rustix::io::pwrite(&again, b"x", 0).is_err());
        assert!(rustix::fs::ftruncate(&again, 0).is_err());
    }
    let checksums = arena.seen().all().unwrap();
    let adopt = |checksums: &[Crc32c]| {
        let memory = lent.as_fd().try_clone_to_owned().unwrap();
        Arena::adopt(
            "a".to_owned(),
            arrangement(4096),
            memory,
            provider(),
            checksums.to_vec(),
            Arc::default(),
        )
    };
    let adopted = Arc::new(adopt(&checksums).unwrap());
    assert!((0..3).all(|chunk| adopted.claim(chunk).is_none()));
    assert!(adopt(&checksums[1..]).is_err(), "of another length");
}
