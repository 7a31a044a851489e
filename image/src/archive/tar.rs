//! The tar stream around the disk's data, byte for byte as GNU tar 1.34 writes it with
//! `--format=oldgnu --sparse --owner=0 --group=0 --numeric-owner --mode=0644`.
//!
//! A sparse member is a header with the first four ranges of the map, extension blocks of 21 ranges each, and then
//! the data of all ranges, each padded to whole blocks (here they are whole blocks already). Numbers are octal as
//! long as they fit, and base 256 from 8 GiB on.

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::DISK_NAME;
use weightd_types::ByteRange;

/// Everything in a tar stream is a multiple of this.
pub(super) const BLOCK_BYTES: u64 = 512;

/// What GNU tar pads an archive to: its unit of IO with tapes, still the default.
const RECORD_BYTES: u64 = 20 * BLOCK_BYTES;

/// Two zero blocks end an archive.
const END_BYTES: u64 = 2 * BLOCK_BYTES;

/// What comes before the data: the header of a disk of `disk_bytes` with data in `data`, and its extensions.
pub(super) fn head(disk_bytes: u64, data: &[ByteRange], time: u64) -> Vec<u8> {
    let mut header = plain_header(data.iter().map(ByteRange::len).sum(), time);
    if *data == [ByteRange::new(0, disk_bytes)] {
        // Without a hole GNU tar writes an ordinary member.
        set_checksum(&mut header);
        return header.as_bytes().to_vec();
    }
    // GNU tar closes every map with an empty range at the end of the file. Where the file ends in a hole, that is
    // what tells a reader how far it reaches.
    let map: Vec<ByteRange> = data.iter().copied().chain([ByteRange::at(disk_bytes, 0)]).collect();
    header.set_entry_type(EntryType::GNUSparse);
    let gnu = header.as_gnu_mut().expect("new_gnu makes a GNU header");
    gnu.set_real_size(disk_bytes);
    let (first, rest) = map.split_at(map.len().min(gnu.sparse.len()));
    fill(&mut gnu.sparse, first);
    gnu.set_is_extended(!rest.is_empty());
    set_checksum(&mut header);
    let mut head = header.as_bytes().to_vec();
    extend(&mut head, rest);
    head
}

/// Length of the zeros that end an archive whose headers and data are `content` bytes.
pub(super) const fn tail_bytes(content: u64) -> u64 {
    (content + END_BYTES).next_multiple_of(RECORD_BYTES) - content
}

/// The zeros of [`tail_bytes`].
pub(super) fn tail(content: u64) -> Vec<u8> {
    let len = usize::try_from(tail_bytes(content)).expect("a tail is shorter than two records");
    vec![0; len]
}

fn plain_header(stored_bytes: u64, time: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_path(DISK_NAME).expect("the name is short and relative");
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(stored_bytes);
    header.set_mtime(time);
    header.set_entry_type(EntryType::Regular);
    header
}

/// Appends the extension blocks with the ranges of `map`.
fn extend(head: &mut Vec<u8>, map: &[ByteRange]) {
    let mut extension = GnuExtSparseHeader::new();
    let mut rest = map;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(rest.len().min(extension.sparse.len()));
        rest = later;
        fill(extension.sparse_mut(), now);
        extension.set_is_extended(!rest.is_empty());
        head.extend_from_slice(extension.as_bytes());
        extension = GnuExtSparseHeader::new();
    }
}

fn fill(slots: &mut [GnuSparseHeader], map: &[ByteRange]) {
    for (slot, range) in slots.iter_mut().zip(map) {
        slot.set_offset(range.start);
        slot.set_length(range.len());
    }
}

/// The sum of a header's bytes, those of the sum itself taken as spaces.
pub(super) fn checksum(header: &Header) -> u32 {
    let own = 148..156;
    let byte = |(at, &byte): (usize, &u8)| u32::from(if own.contains(&at) { b' ' } else { byte });
    header.as_bytes().iter().enumerate().map(byte).sum()
}

/// Writes the sum as GNU tar does: six digits, a NUL, a space. (`Header::set_cksum` writes seven and a NUL, which
/// every reader takes too.)
fn set_checksum(header: &mut Header) {
    let digits = format!("{:06o}\0 ", checksum(header));
    header.as_old_mut().cksum.copy_from_slice(digits.as_bytes());
}
