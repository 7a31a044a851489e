//! A disk as the file that Compute Engine imports: `disk.tar.gz`, a gzip'd `tar --format=oldgnu` with one sparse
//! member, `disk.raw`, of whole GiB.
//!
//! Weights do not compress, so gzip is only a frame here: deflate's stored blocks, which cost a copy and a checksum.
//! Stored blocks have a fixed size, so the length of the file and the place of every byte in it are known before
//! the first byte is ([`Plan`]). That makes an upload of known length, and one that can be taken up again
//! ([`Encoder::state`]).
//!
//! [`Reader`] reads such files, and those of GNU tar with gzip or pigz.
//!
//! Invariant: nothing here does IO of its own, and the same plan and data always give the same bytes.

mod encoder;
mod gzip;
mod plan;
mod read;
mod tar;

pub(crate) use encoder::{EncodeError, Encoder, EncoderState};
pub(crate) use plan::Plan;
pub(crate) use read::{ArchiveError, Reader};

/// Name that Compute Engine wants of the one member.
pub(crate) const DISK_NAME: &str = "disk.raw";

/// Compute Engine takes only disks that are a multiple of this many bytes: 1 GiB.
pub(crate) const DISK_UNIT_BYTES: u64 = 1 << 30;

/// What takes an archive's bytes as they are made.
pub(crate) trait Out {
    /// Takes the next bytes.
    fn extend_from_slice(&mut self, bytes: &[u8]);

    /// Makes room for so many, where that helps.
    fn reserve(&mut self, _bytes: usize) {}
}

impl Out for Vec<u8> {
    fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    fn reserve(&mut self, bytes: usize) {
        self.reserve(bytes);
    }
}

#[cfg(test)]
mod tests;
