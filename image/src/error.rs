//! What can go wrong with an image.

use std::{io, path::PathBuf};

use weightd_fetch::FetchError;
use weightd_store::StoreError;
use weightd_types::display_bytes;

use crate::archive::EncodeError;

/// What went wrong with an image or an export.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A source failed, or what it has cannot be taken.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// A store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image is smaller than what it is to hold.
    #[error("an image of {} cannot hold these models: they need {}; give --size {gibibytes}GiB or leave it out", display_bytes(*.size), display_bytes(*.needed), gibibytes = .needed.div_ceil(1 << 30))]
    TooSmall {
        /// Asked for, in bytes.
        size: u64,
        /// Needed, in bytes.
        needed: u64,
    },
    /// Something asked for cannot be.
    #[error("{0}")]
    Usage(String),
    /// Someone else writes the same image.
    #[error("{}: another build writes this image; wait for it, or choose another output", path.display())]
    Busy {
        /// The output.
        path: PathBuf,
    },
    /// The disk that the image is written to is full.
    #[error("{}: no room: the image needs {} there; free some, or choose another place", path.display(), display_bytes(*.needed))]
    Full {
        /// The output.
        path: PathBuf,
        /// Bytes that the whole image needs.
        needed: u64,
    },
    /// A file cannot be read or written.
    #[error("cannot {action} {}: {cause}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// What was asked for cannot be a file system.
    #[error("the image cannot be made: {why}")]
    FileSystem {
        /// What stands against it.
        why: String,
    },
    /// The archive cannot be read.
    #[error("{}: {why}", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A file that is no image of weightd's.
    #[error("{}: not an image of weightd's: {why}", path.display())]
    NotAnImage {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// An image or archive that does not hold what it says.
    #[error("{}: damaged: {why}; build it again", path.display())]
    Damaged {
        /// The image.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The bucket did not take the image.
    #[error(transparent)]
    Upload(#[from] weightd_source::SourceError),
}

impl ImageError {
    /// An error of the system, with what was tried.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |cause| Self::Io { action, path, cause }
    }

    /// What was to be archived does not go with what was planned: the source or an earlier run's record is not what it was.
    pub(crate) fn encode(name: String) -> impl FnOnce(EncodeError) -> Self {
        move |error| Self::io("encode", name)(io::Error::other(error))
    }

    /// A stable word for what went wrong.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Fetch(error) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::Upload(error) => error.kind(),
            Self::TooSmall { .. } => "too_small",
            Self::Usage(_) => "usage",
            Self::Busy { .. } => "busy",
            Self::Full { .. } => "full",
            Self::Io { .. } => "io",
            Self::FileSystem { .. } => "file_system",
            Self::Archive { .. } => "archive",
            Self::NotAnImage { .. } => "not_an_image",
            Self::Damaged { .. } => "damaged",
        }
    }
}
