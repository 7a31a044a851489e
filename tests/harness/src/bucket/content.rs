//! The bytes of objects. They lie in memory of no file's, because benchmarks empty the page cache under their servers,
//! and are sent from where they lie.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use md5::{Digest, Md5};
use memmap2::{Advice, MmapMut};

use super::refusal::Refusal;

/// What an object holds, and its checksums.
#[derive(Debug, Clone)]
pub(super) struct Content {
    pub(super) bytes: Bytes,
    /// Base64 of the big-endian bytes, as Cloud Storage gives it.
    pub(super) crc32c: String,
    /// Base64. Not every object has one, as in real buckets: it takes longer than sending the object.
    pub(super) md5: Option<String>,
}

/// Checksums that an uploader says its bytes have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Claimed {
    pub(super) crc32c: Option<String>,
    pub(super) md5: Option<String>,
}

impl Content {
    /// Takes bytes as they are in memory.
    pub(super) fn of(bytes: Bytes, with_md5: bool) -> Self {
        let crc32c = BASE64_STANDARD.encode(crc32c::crc32c(&bytes).to_be_bytes());
        let md5 = with_md5.then(|| BASE64_STANDARD.encode(Md5::digest(&bytes)));
        Self { bytes, crc32c, md5 }
    }

    /// Reads a file into memory.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        Ok(Self::of(filled(length, |memory| file.read_exact(memory))?, false))
    }

    /// Whether it is what an uploader meant to send.
    pub(super) fn check(&self, claimed: &Claimed) -> Result<(), Refusal> {
        let differs =
            |own: Option<&String>, other: Option<&String>| own.zip(other).is_some_and(|(a, b)| a != b);
        if differs(Some(&self.crc32c), claimed.crc32c.as_ref()) {
            return Err(Refusal::invalid("Provided CRC32C does not match the calculated one."));
        }
        if differs(self.md5.as_ref(), claimed.md5.as_ref()) {
            return Err(Refusal::invalid("Provided MD5 hash does not match the calculated one."));
        }
        Ok(())
    }
}

impl Claimed {
    /// What is said in `x-goog-hash`, such as `crc32c=AAAAAA==,md5=…`, is added.
    pub(super) fn add(&mut self, header: &str) {
        for part in header.split(',').map(str::trim) {
            match part.split_once('=') {
                Some(("crc32c", sum)) => self.crc32c = Some(sum.to_owned()),
                Some(("md5", sum)) => self.md5 = Some(sum.to_owned()),
                _ => {}
            }
        }
    }
}

/// Pieces as one. Each is given up as soon as it is copied, so that the whole is never there twice.
pub(super) fn joined(pieces: Vec<Bytes>) -> io::Result<Bytes> {
    let length = pieces.iter().map(Bytes::len).sum();
    filled(length, |mut memory| {
        for piece in pieces {
            let (place, rest) = memory.split_at_mut(piece.len());
            place.copy_from_slice(&piece);
            memory = rest;
        }
        Ok(())
    })
}

/// So much memory, filled.
fn filled(length: usize, fill: impl FnOnce(&mut [u8]) -> io::Result<()>) -> io::Result<Bytes> {
    if length == 0 {
        // There are no mappings of nothing.
        return Ok(Bytes::new());
    }
    let mut memory = MmapMut::map_anon(length)?;
    // Huge pages are faster to fill and to send; a kernel without them gives small ones.
    let _ = memory.advise(Advice::HugePage);
    fill(&mut memory)?;
    Ok(Bytes::from_owner(memory.make_read_only()?))
}
