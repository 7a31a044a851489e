//! Where an image goes: a raw disk, an archive in a file, or an archive in a bucket.

mod archive;
mod partial;
mod raw;
mod upload;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use weightd_source::Origins;
use weightd_store::io::{Buffer, BufferPool};
use weightd_types::{Scheme, SourceUri};

use self::{archive::ArchiveFile, raw::RawDisk, upload::Upload};
use crate::{ImageError, archive::EncoderState, archive::Plan, disk::Disk};

pub(crate) use partial::{Begin, Partial, Record};

/// Where an image goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// A raw disk, sparse: `disk.raw`.
    RawDisk(PathBuf),
    /// What Compute Engine imports, in a file: `disk.tar.gz`.
    Archive(PathBuf),
    /// What Compute Engine imports, in a bucket: `gs://bucket/name.tar.gz`.
    Bucket(SourceUri),
}

impl Output {
    /// Reads what was typed: the name's end says what is wanted.
    ///
    /// # Errors
    /// [`ImageError::Usage`].
    pub fn parse(text: &str) -> Result<Self, ImageError> {
        let refuse = |why: &str| Err(ImageError::Usage(format!("--output {text}: {why}")));
        let is_archive = text.ends_with(".tar.gz");
        if text.contains("://") {
            return match text.parse::<SourceUri>() {
                Ok(uri) if uri.scheme() == Scheme::Gs && is_archive => Ok(Self::Bucket(uri)),
                Ok(uri) if uri.scheme() == Scheme::Gs => {
                    refuse("Compute Engine imports .tar.gz from a bucket")
                }
                Ok(_) => refuse("write gs://bucket/name.tar.gz, or a file"),
                Err(error) => refuse(&error.to_string()),
            };
        }
        match text.ends_with(".raw") {
            true => Ok(Self::RawDisk(text.into())),
            false if is_archive => Ok(Self::Archive(text.into())),
            false => {
                refuse("write a name that ends in .raw (a disk) or .tar.gz (what Compute Engine imports)")
            }
        }
    }

    /// Its name, for people.
    pub fn name(&self) -> String {
        match self {
            Self::RawDisk(path) | Self::Archive(path) => path.display().to_string(),
            Self::Bucket(uri) => uri.to_string(),
        }
    }

    /// Its file, if it is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::RawDisk(path) | Self::Archive(path) => Some(path),
            Self::Bucket(_) => None,
        }
    }
}

/// What a sink needs to go on where an earlier one was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) enum SinkState {
    /// A raw disk needs nothing.
    Raw,
    /// How far an archive was.
    Archive(EncoderState),
}

/// What takes a disk's data, in the order of the disk.
pub(crate) enum Sink {
    Raw(RawDisk),
    Archive(ArchiveFile),
    Upload(Upload),
}

impl Sink {
    /// Begins, or goes on from a state. Files are those of `partial`.
    pub(crate) async fn open(
        output: &Output,
        partial: Option<&Partial>,
        disk: &Disk,
        pool: &BufferPool,
        state: Option<SinkState>,
        origins: &Origins,
    ) -> Result<Self, ImageError> {
        match (output, partial) {
            (Output::RawDisk(_), Some(partial)) => Ok(Self::Raw(RawDisk::open(partial, disk, pool)?)),
            (Output::Archive(_), Some(partial)) => {
                let state = match state {
                    Some(SinkState::Archive(state)) => Some(state),
                    Some(SinkState::Raw) | None => None,
                };
                Ok(Self::Archive(ArchiveFile::open(partial, plan(output, disk)?, state).await?))
            }
            (Output::Bucket(uri), _) => {
                Ok(Self::Upload(Upload::begin(origins, uri, plan(output, disk)?).await?))
            }
            (Output::RawDisk(_) | Output::Archive(_), None) => unreachable!("files have a partial"),
        }
    }

    /// Takes data that lie behind all that came before.
    pub(crate) async fn put(&mut self, at: u64, buffer: Buffer) -> Result<(), ImageError> {
        match self {
            Self::Raw(sink) => sink.put(at, buffer).await,
            Self::Archive(sink) => sink.put(buffer).await,
            Self::Upload(sink) => sink.put(buffer).await,
        }
    }

    /// Where it is now; `None` where nobody can go on.
    pub(crate) fn state(&self) -> Option<SinkState> {
        match self {
            Self::Raw(_) => Some(SinkState::Raw),
            Self::Archive(sink) => Some(SinkState::Archive(sink.state())),
            Self::Upload(_) => None,
        }
    }

    /// Makes all that was taken durable.
    pub(crate) async fn sync(&mut self) -> Result<(), ImageError> {
        match self {
            Self::Raw(sink) => sink.sync().await,
            Self::Archive(sink) => sink.sync().await,
            Self::Upload(_) => Ok(()),
        }
    }

    /// Ends it, whole. Gives the length of what was made.
    pub(crate) async fn finish(self) -> Result<u64, ImageError> {
        match self {
            Self::Raw(sink) => sink.finish().await,
            Self::Archive(sink) => sink.finish().await,
            Self::Upload(sink) => sink.finish().await,
        }
    }
}

/// The archive of a disk: everything that is written of it, whole blocks in order.
fn plan(output: &Output, disk: &Disk) -> Result<Plan, ImageError> {
    Plan::new(disk.bytes, disk.data(), disk.time)
        .map_err(|error| ImageError::Usage(format!("--output {}: {error}", output.name())))
}
