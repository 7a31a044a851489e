//! The two traits of this room.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use weightd_types::{ByteRange, Object, SourceUri};

use crate::SourceError;

/// The bytes of a range, in order, in pieces of whatever size the transport delivers. A stream that ends early
/// without an error is a short body: the reader counts.
pub type ByteStream = BoxStream<'static, Result<Bytes, SourceError>>;

/// One origin of weights.
#[async_trait]
pub trait Source: fmt::Debug + Send + Sync {
    /// Lists every object below the URI with one listing (which may take several pages), in any order. Names
    /// are relative to the URI. Directory markers (empty objects whose name ends in `/`) are left out.
    ///
    /// # Errors
    /// [`SourceError::NotFound`] when the bucket, repository or directory does not exist, or has no objects;
    /// [`SourceError::InvalidName`] when an object's name cannot become a file; [`SourceError::Refused`] when an
    /// object cannot be read as stored.
    async fn list(&self) -> Result<Vec<Object>, SourceError>;

    /// Streams a range of one object, pinned to the version in `object`. The range is never empty and lies within
    /// the object.
    ///
    /// # Errors
    /// [`SourceError::Changed`] when that version is no longer there.
    async fn read(&self, object: &Object, range: ByteRange) -> Result<ByteStream, SourceError>;
}

/// Makes sources.
#[async_trait]
pub trait Opener: fmt::Debug + Send + Sync {
    /// The source for a URI. Clients and connections are shared between sources of the same origin.
    ///
    /// # Errors
    /// When credentials cannot be found, or the URI cannot be served.
    async fn open(&self, uri: &SourceUri) -> Result<Arc<dyn Source>, SourceError>;
}
