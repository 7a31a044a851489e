//! What can go wrong while fetching.

use std::sync::Arc;

use weightd_source::{ResolveError, SourceError};
use weightd_store::StoreError;
use weightd_types::{ByteRange, HeaderError, WeightIndexError};

/// What went wrong while fetching. Cheap to clone, because everyone who waits for a blob gets the same error.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    /// The source could not be resolved.
    #[error(transparent)]
    Resolve(Arc<ResolveError>),
    /// The origin failed.
    #[error(transparent)]
    Source(Arc<SourceError>),
    /// The disk failed.
    #[error(transparent)]
    Store(Arc<StoreError>),
    /// The origin kept failing.
    #[error("{url}: gave up {range} after {attempts} attempts without a byte: {source}")]
    Exhausted {
        /// The object.
        url: String,
        /// What was still missing of the range.
        range: ByteRange,
        /// Attempts made.
        attempts: u32,
        /// The last failure.
        #[source]
        source: Arc<SourceError>,
    },
    /// Not a valid safetensors file.
    #[error("{url}: {source}; upload the object again, or leave it out with --exclude")]
    Header {
        /// The object.
        url: String,
        /// What is wrong with it.
        #[source]
        source: HeaderError,
    },
    /// An index its shards do not keep.
    #[error("{url}: {source}; upload the model again, or leave the index out with --exclude")]
    WeightIndex {
        /// The index.
        url: String,
        /// What is wrong.
        #[source]
        source: WeightIndexError,
    },
    /// The bytes are not those the origin vouches for, however often they are fetched.
    #[error(
        "{url}: the bytes received have {found}, the origin says {expected}; fetched {attempts} times; the object or the way to it is damaged, and nothing of it was kept"
    )]
    Corrupt {
        /// The object.
        url: String,
        /// Checksum the origin publishes.
        expected: String,
        /// Checksum of what arrived.
        found: String,
        /// Times it was fetched.
        attempts: u32,
    },
    /// The fetcher is closing.
    #[error("the agent is shutting down; run the command again")]
    Closed,
}

impl From<ResolveError> for FetchError {
    fn from(error: ResolveError) -> Self {
        Self::Resolve(Arc::new(error))
    }
}

impl From<SourceError> for FetchError {
    fn from(error: SourceError) -> Self {
        Self::Source(Arc::new(error))
    }
}

impl From<StoreError> for FetchError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

impl FetchError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Resolve(error) => error.is_retryable(),
            Self::Source(error) => error.is_retryable(),
            Self::Store(error) => error.is_retryable(),
            Self::Exhausted { .. } | Self::Closed => true,
            Self::Header { .. } | Self::WeightIndex { .. } | Self::Corrupt { .. } => false,
        }
    }

    /// Whether nothing can be fetched until someone comes as whom the origin may be asked.
    pub fn is_paused(&self) -> bool {
        matches!(self, Self::Source(error) if error.is_paused())
    }

    /// A stable word for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Resolve(error) => error.kind(),
            Self::Source(error) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::Exhausted { .. } => "exhausted",
            Self::Header { .. } => "header",
            Self::WeightIndex { .. } => "weight_index",
            Self::Corrupt { .. } => "corrupt",
            Self::Closed => "closed",
        }
    }
}
