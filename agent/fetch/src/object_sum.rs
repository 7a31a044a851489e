//! Sums that need an object's bytes in order, of origins that publish one. A CRC-32C does not: it combines.

use md5::Md5;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use weightd_types::{Crc32c, Object};

/// A sum of an object's bytes in their order, and what it has to be.
#[derive(Clone)]
pub struct ObjectSum(Sum);

#[derive(Clone)]
enum Sum {
    Sha256(Sha256, [u8; 32]),
    Md5(Md5, [u8; 16]),
    GitSha1(Sha1, [u8; 20]),
}

/// What the origin says and what arrived, when they differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// What the origin says, with the kind of the sum.
    pub expected: String,
    /// What arrived.
    pub found: String,
}

impl Mismatch {
    /// Compares the CRC-32C of an object, if its origin publishes one.
    pub fn of_crc32c(object: &Object, found: Crc32c) -> Option<Self> {
        let expected = object.checksums.crc32c.filter(|expected| *expected != found)?;
        Some(Self { expected: format!("crc32c {expected}"), found: format!("crc32c {found}") })
    }
}

impl ObjectSum {
    /// SHA-256 wherever it is known, since blobs are shared by it; else whatever there is, if no CRC-32C is. `None` where the
    /// bytes need not be summed in their order.
    pub fn of(object: &Object) -> Option<Self> {
        let checksums = &object.checksums;
        if let Some(expected) = checksums.sha256 {
            return Some(Self(Sum::Sha256(Sha256::new(), *expected.as_bytes())));
        }
        if checksums.crc32c.is_some() {
            return None;
        }
        if let Some(expected) = checksums.git_sha1 {
            let sum = Sha1::new_with_prefix(format!("blob {}\0", object.size));
            return Some(Self(Sum::GitSha1(sum, expected)));
        }
        checksums.md5.map(|expected| Self(Sum::Md5(Md5::new(), expected)))
    }

    /// The next bytes of the object.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Sum::Sha256(sum, _) => sum.update(bytes),
            Sum::Md5(sum, _) => sum.update(bytes),
            Sum::GitSha1(sum, _) => sum.update(bytes),
        }
    }

    /// What differs, when all bytes were summed.
    pub fn compare(self) -> Option<Mismatch> {
        let (name, found, expected) = match self.0 {
            Sum::Sha256(sum, expected) => ("sha256", sum.finalize().to_vec(), expected.to_vec()),
            Sum::Md5(sum, expected) => ("md5", sum.finalize().to_vec(), expected.to_vec()),
            Sum::GitSha1(sum, expected) => ("git sha1", sum.finalize().to_vec(), expected.to_vec()),
        };
        let words = |sum: &[u8]| format!("{name} {}", hex::encode(sum));
        (found != expected).then(|| Mismatch { expected: words(&expected), found: words(&found) })
    }
}

impl std::fmt::Debug for ObjectSum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match &self.0 {
            Sum::Sha256(..) => "ObjectSum(sha256)",
            Sum::Md5(..) => "ObjectSum(md5)",
            Sum::GitSha1(..) => "ObjectSum(git sha1)",
        })
    }
}
