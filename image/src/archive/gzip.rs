//! A gzip file (RFC 1952) of known length, whose deflate stream (RFC 1951) is stored blocks.
//!
//! Nothing is held back: since the length is known, so is that of each block, and a block's header can be written
//! before its content has come. So the state between any two bytes is a count and a checksum.

use crc_fast::{CrcAlgorithm, Digest};

use super::Out;

/// Content bytes of each stored block but the last. Deflate allows 65,535; this is the largest number below that
/// is whole tar blocks (127 of 512 bytes). So every sector of the disk lies in one piece in the file, with no
/// header within, for 0.6 bytes more per MiB.
const BLOCK_BYTES: u64 = 127 * 512;

/// Header of a stored block: three bits (last or not, type 0) padded to a byte, since it begins at one; then the
/// length and its complement.
const BLOCK_HEADER_BYTES: u64 = 5;

/// How much is summed and then copied at once, so that it is read from memory once. Not more, because the C
/// library copies longer pieces by `rep movsb`, which on AMD EPYC is slow into cached memory that is not aligned,
/// and behind headers of five bytes nothing is: 2.4 to 3.8 GB/s with pieces of 4 KiB and more, 6 to 8 with these
/// (writes of 1 MiB and less; from 8 MiB on memory is what counts, and all give 4 to 6).
const PIECE_BYTES: usize = 2 << 10;

/// CRC-32 and length of the content.
const TRAILER_BYTES: u64 = 8;

/// Deflate, no flags (so no name), time 0, no extra flags, unknown system (255): nothing of the machine that
/// wrote it, so that equal disks give equal files.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];

/// Bytes of the file once `content` bytes have been pushed: with the header of the block they end in, without the
/// trailer.
pub(super) const fn written_bytes(content: u64) -> u64 {
    if content == 0 {
        return 0;
    }
    HEADER.len() as u64 + content.div_ceil(BLOCK_BYTES) * BLOCK_HEADER_BYTES + content
}

/// Bytes of a file with `content` bytes in it; they must not be 0.
pub(super) const fn file_bytes(content: u64) -> u64 {
    written_bytes(content) + TRAILER_BYTES
}

/// Where in the file the byte `content` of the content lies.
#[cfg(test)]
pub(super) const fn position_of(content: u64) -> u64 {
    written_bytes(content + 1) - 1
}

/// A CRC-32 (IEEE 802.3), the checksum of gzip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Crc32(pub(super) u32);

impl Crc32 {
    /// The checksum of some bytes.
    pub(super) fn of(bytes: &[u8]) -> Self {
        let mut sum = Self::default().go_on();
        sum.update(bytes);
        Self::end(&sum)
    }

    /// A sum to which more bytes can be added.
    fn go_on(self) -> Digest {
        // What a sum goes on from is the sum before it was inverted at the end.
        Digest::new_with_init_state(CrcAlgorithm::Crc32IsoHdlc, u64::from(!self.0))
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "sums of any length come in 64 bits, and this one has 32"
    )]
    fn end(sum: &Digest) -> Self {
        Self(sum.finalize() as u32)
    }
}

/// Puts content into its frame.
#[derive(Debug)]
pub(super) struct Framer {
    /// Length of the whole content; not 0.
    content_bytes: u64,
    /// How much of it was pushed.
    pushed: u64,
    /// The checksum of that.
    crc: Crc32,
}

impl Framer {
    /// A file that will hold `content_bytes`.
    pub(super) const fn new(content_bytes: u64) -> Self {
        Self { content_bytes, pushed: 0, crc: Crc32(0) }
    }

    /// Goes on after the first `pushed` bytes, which summed to `crc`.
    pub(super) const fn resume(content_bytes: u64, pushed: u64, crc: Crc32) -> Self {
        Self { content_bytes, pushed, crc }
    }

    /// Number of content bytes pushed so far.
    pub(super) const fn pushed(&self) -> u64 {
        self.pushed
    }

    /// Checksum of the content pushed so far.
    pub(super) const fn crc(&self) -> Crc32 {
        self.crc
    }

    /// Appends the next content bytes to `out`, with what frames them. The caller does not push more than it
    /// announced.
    pub(super) fn push(&mut self, mut bytes: &[u8], out: &mut impl Out) {
        let end = self.pushed + bytes.len() as u64;
        debug_assert!(end <= self.content_bytes, "more content than was announced");
        out.reserve(small(written_bytes(end) - written_bytes(self.pushed)));
        if self.pushed == 0 && !bytes.is_empty() {
            out.extend_from_slice(&HEADER);
        }
        let mut sum = self.crc.go_on();
        while !bytes.is_empty() {
            let within = self.pushed % BLOCK_BYTES;
            if within == 0 {
                out.extend_from_slice(&block_header(self.content_bytes - self.pushed));
            }
            let (now, rest) = bytes.split_at(small(BLOCK_BYTES - within).min(bytes.len()));
            for piece in now.chunks(PIECE_BYTES) {
                sum.update(piece);
                out.extend_from_slice(piece);
            }
            self.pushed += now.len() as u64;
            bytes = rest;
        }
        self.crc = Crc32::end(&sum);
    }

    /// Appends the trailer; all content was pushed.
    pub(super) fn finish(self, out: &mut impl Out) {
        debug_assert_eq!(self.pushed, self.content_bytes, "content is missing");
        out.extend_from_slice(&self.crc.0.to_le_bytes());
        #[expect(clippy::cast_possible_truncation, reason = "gzip keeps the length modulo 2^32")]
        let len = self.content_bytes as u32;
        out.extend_from_slice(&len.to_le_bytes());
    }
}

/// The header of a block that begins `left` bytes before the end of the content.
fn block_header(left: u64) -> [u8; 5] {
    let len = u16::try_from(left.min(BLOCK_BYTES)).expect("a block is shorter than 64 KiB");
    let ([a, b], [c, d]) = (len.to_le_bytes(), (!len).to_le_bytes());
    [u8::from(left <= BLOCK_BYTES), a, b, c, d]
}

/// A length of bytes that are in memory, or about to be.
fn small(len: u64) -> usize {
    usize::try_from(len).expect("what is in memory is counted in usize")
}
