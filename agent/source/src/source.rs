//! The two traits of this room.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use weightd_types::{ByteRange, Checksums, Object, ObjectPath, SourceUri, Version};

use crate::{Credential, SourceError};

/// The bytes of a range, in order, in pieces of whatever size the transport delivers. A stream that ends early
/// without an error is a short body: the reader counts.
pub type ByteStream = BoxStream<'static, Result<Bytes, SourceError>>;

/// One entry of a listing. An object that cannot be taken only matters if the user's selection takes it, so it
/// is listed with its objection instead of failing the listing: see [`resolve`](crate::resolve).
#[derive(Debug)]
pub enum Listed {
    /// An object that can be read.
    Object(Object),
    /// An object that cannot be taken as it is.
    Unfit {
        /// Its name relative to the URI, as the origin has it.
        name: String,
        /// Why not: [`SourceError::InvalidName`] or [`SourceError::Refused`].
        why: SourceError,
    },
}

impl Listed {
    /// An entry of a listing: unfit when its name cannot become a file.
    pub fn new(uri: &SourceUri, name: String, size: u64, version: Version, checksums: Checksums) -> Self {
        match ObjectPath::new(name) {
            Ok(path) => Self::Object(Object { path, size, version, checksums }),
            Err(source) => {
                let name = source.name.clone();
                Self::Unfit { name, why: SourceError::InvalidName { what: uri.to_string(), source } }
            }
        }
    }

    /// Its name relative to the URI.
    pub fn name(&self) -> &str {
        match self {
            Self::Object(object) => object.path.as_str(),
            Self::Unfit { name, .. } => name,
        }
    }

    /// The object, when it can be taken.
    pub fn object(&self) -> Option<&Object> {
        match self {
            Self::Object(object) => Some(object),
            Self::Unfit { .. } => None,
        }
    }
}

/// One origin of weights.
#[async_trait]
pub trait Source: fmt::Debug + Send + Sync {
    /// Lists every object below the URI with one listing (which may take several pages), in any order. Names
    /// are relative to the URI. Directory markers (empty objects whose name ends in `/`) are left out.
    ///
    /// # Errors
    /// [`SourceError::NotFound`] when the bucket, repository or directory does not exist, or has no objects.
    async fn list(&self) -> Result<Vec<Listed>, SourceError>;

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

    /// The source for a URI, asked as someone in particular, and as nobody else. Origins that know no identities are
    /// the same for the node and for nobody in particular, and take no credentials.
    ///
    /// # Errors
    /// As [`Opener::open`], and when the origin does not take such a credential.
    async fn open_as(
        &self,
        uri: &SourceUri,
        credential: &Credential,
    ) -> Result<Arc<dyn Source>, SourceError> {
        match credential {
            Credential::Node | Credential::Anonymous => self.open(uri).await,
            other => Err(SourceError::not_taken(uri, other)),
        }
    }

    /// As [`Opener::open`], for bringing back what the store had and the disk lost, which is the node's own business.
    ///
    /// # Errors
    /// As [`Opener::open`].
    async fn open_to_mend(&self, uri: &SourceUri) -> Result<Arc<dyn Source>, SourceError> {
        self.open(uri).await
    }
}
