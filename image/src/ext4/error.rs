//! What can go wrong.

use std::io;

use super::sys::Code;

/// A file system that cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ext4Error {
    /// The library, or the system below it, failed.
    #[error("cannot {doing} {object}: {source}")]
    Failed {
        /// What was being done.
        doing: &'static str,
        /// To what: a path.
        object: String,
        /// What the library says.
        #[source]
        source: io::Error,
    },
    /// No such file system can be.
    #[error("there can be no such ext4 file system: {0}")]
    Format(String),
    /// Something cannot be put into the file system under construction.
    #[error("cannot add {object}: {reason}")]
    Refused {
        /// Its path in the file system.
        object: String,
        /// Why.
        reason: String,
    },
    /// More directory blocks and extent blocks than were reserved.
    #[error(
        "cannot add {object}: the {reserved_blocks} blocks reserved for directories and extents are full"
    )]
    ReserveFull {
        /// What needed another one: a path in the file system.
        object: String,
        /// How many were reserved.
        reserved_blocks: u64,
    },
    /// No ext4 file system, or a damaged one.
    #[error("{object} is damaged: {reason}")]
    Damaged {
        /// What is: the path of the file system, or a path or an inode in it.
        object: String,
        /// In what way.
        reason: &'static str,
    },
    /// A file system of a kind that is not read here.
    #[error("{object} cannot be read: {reason}")]
    Unsupported {
        /// The path of the file system, or an inode in it.
        object: String,
        /// What stands against it.
        reason: String,
    },
    #[cfg(test)]
    /// A file that is longer than its reader wants to read.
    #[error("{object} has {bytes} bytes, more than the {limit_bytes} that are read at most")]
    TooLong {
        /// The file.
        object: String,
        /// Its length.
        bytes: u64,
        /// The longest one that would be read.
        limit_bytes: u64,
    },
}

impl Ext4Error {
    /// For `map_err`: the library's answer, with what was being done to what.
    pub(super) fn library(doing: &'static str, object: &str) -> impl FnOnce(Code) -> Self {
        move |code| Self::Failed { doing, object: object.to_owned(), source: code.into() }
    }

    /// For `map_err`: the system's answer, with what was being done to what.
    pub(super) fn system<E: Into<io::Error>>(doing: &'static str, object: &str) -> impl FnOnce(E) -> Self {
        move |error| Self::Failed { doing, object: object.to_owned(), source: error.into() }
    }
}
