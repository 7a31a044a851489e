//! One object of an origin, as listed at one moment.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Checksums, ObjectPath};

/// Which version of an object was listed. Every read is pinned to it, so that a snapshot never mixes bytes of
/// two versions.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Version {
    /// Cloud Storage's generation.
    Generation(i64),
    /// An entity tag: S3, Azure, HTTP servers, and local files (made from inode, time and size).
    Etag(String),
    /// A file of a git repository: content id within a commit. The content id identifies the bytes, the commit
    /// is where to read them.
    Git {
        /// Commit that was resolved.
        commit: String,
        /// Git's id of the file's content.
        oid: String,
    },
}

impl Version {
    /// What identifies the content: the commit is left out, because a later commit may hold the same file.
    pub fn identity(&self) -> String {
        match self {
            Self::Generation(generation) => format!("generation:{generation}"),
            Self::Etag(etag) => format!("etag:{etag}"),
            Self::Git { oid, .. } => format!("git:{oid}"),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Generation(generation) => write!(f, "generation {generation}"),
            Self::Etag(etag) => write!(f, "etag {etag}"),
            Self::Git { commit, oid } => write!(f, "git {oid} of commit {commit}"),
        }
    }
}

/// One object: where it is in the snapshot, how long it is, which version, and what the origin says of its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Object {
    /// Name relative to the snapshot.
    pub path: ObjectPath,
    /// Length in bytes.
    pub size: u64,
    /// The version listed.
    pub version: Version,
    /// What the origin says of its bytes.
    #[serde(default)]
    pub checksums: Checksums,
}
