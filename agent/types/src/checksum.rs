//! Checksums that origins publish, and the CRC-32C that weightd keeps of each chunk.

use std::fmt;

use crc_fast::{CrcAlgorithm, checksum_combine};
use serde::{Deserialize, Serialize};

use crate::Digest;

/// CRC-32C, by its name in iSCSI.
const CASTAGNOLI: CrcAlgorithm = CrcAlgorithm::Crc32Iscsi;

/// A CRC-32C (Castagnoli), the checksum Cloud Storage publishes. Checksums of neighbours combine into the
/// checksum of both without reading the bytes again, which is why chunks carry this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Crc32c(pub u32);

impl Crc32c {
    /// The checksum of no bytes.
    pub const EMPTY: Self = Self(0);

    /// The checksum of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self::EMPTY.append(bytes)
    }

    /// The checksum of what was summed so far, followed by `bytes`.
    #[must_use]
    pub fn append(self, bytes: &[u8]) -> Self {
        // Where processors have an instruction for this sum, three of them at a time: 1.4 times what `crc_fast` takes there.
        Self(crc32c::crc32c_append(self.0, bytes))
    }

    /// The checksum of what was summed so far, followed by `next_len` bytes whose checksum is `next`.
    #[must_use]
    pub fn combine(self, next: Self, next_len: u64) -> Self {
        if next_len == 0 {
            return self;
        }
        // The first is multiplied with a power of x, which takes microseconds; and what is zero stays so.
        if self == Self::EMPTY {
            return next;
        }
        let both = checksum_combine(CASTAGNOLI, self.0.into(), next.0.into(), next_len);
        Self(u32::try_from(both).expect("sums of any length come in 64 bits, and this one has 32"))
    }
}

impl fmt::Display for Crc32c {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// What the origin says about an object's bytes. Any of them may be absent; all that are present are about the
/// stored bytes, not about what a transcoding server might send.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checksums {
    /// CRC-32C of the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crc32c: Option<Crc32c>,
    /// MD5 of the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub md5: Option<[u8; 16]>,
    /// SHA-256 of the object. Two objects with the same one are the same blob, whatever their source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Digest>,
    /// SHA-1 of `blob <length>\0` and the object: git's name for a file, which the Hugging Face hub gives for
    /// files that are not in LFS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git_sha1: Option<[u8; 20]>,
}

impl Checksums {
    /// Whether the origin published nothing, so that only size and version can be confirmed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The strongest checksum, for people: `crc32c 1a2b3c4d`, or `none`.
    pub fn describe(&self) -> String {
        if let Some(sha256) = &self.sha256 {
            return format!("sha256 {sha256}");
        }
        if let Some(crc32c) = self.crc32c {
            return format!("crc32c {crc32c}");
        }
        if let Some(md5) = self.md5 {
            return format!("md5 {}", hex::encode(md5));
        }
        self.git_sha1.map_or_else(|| "none".to_owned(), |sha1| format!("git {}", hex::encode(sha1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_of_neighbours_combine() {
        let (left, right) = (b"weights arrive ".as_slice(), b"once".as_slice());
        let both = Crc32c::of(&[left, right].concat());
        let len = right.len() as u64;
        assert_eq!(Crc32c::of(left).combine(Crc32c::of(right), len), both);
        assert_eq!(Crc32c::of(left).append(right), both);
        assert_eq!(both.combine(Crc32c::EMPTY, 0), both);
        assert_eq!(Crc32c::EMPTY.combine(both, 19), both);
        assert_eq!(Crc32c::EMPTY.combine(Crc32c::EMPTY, 0), Crc32c::EMPTY);
        // The value every implementation of CRC-32C is checked against (RFC 3720, appendix B.4).
        assert_eq!(Crc32c::of(&[0; 32]), Crc32c(0x8a91_36aa));
    }

    #[test]
    fn two_libraries_say_the_same_of_any_length() {
        let bytes: Vec<u8> =
            (0_u32..40_000).map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()[2]).collect();
        for len in (0..300).chain([1023, 1024, 8191, 8192, 24_576, 24_577, 39_999]) {
            for start in [0, 1, 5] {
                let part = &bytes[start..start + len.min(bytes.len() - start)];
                let other = crc_fast::checksum(CASTAGNOLI, part);
                assert_eq!(u64::from(Crc32c::of(part).0), other, "{} bytes from {start}", part.len());
            }
        }
    }
}
