//! Errors of the rooms, as clients see them: one exhaustive match per room.

use std::io;

use tonic::Status;
use weightd_access::AccessError;
use weightd_expose::{ExposeError, Refusal};
use weightd_fetch::FetchError;
use weightd_proto::v1::{Failure, FailureKind};
use weightd_source::{ResolveError, SourceError};
use weightd_store::StoreError;
use weightd_types::{InvalidGlob, InvalidUri, SnapshotError};

/// Why a lease cannot be, when fetching failed.
pub fn refusal(error: &FetchError) -> Refusal {
    let remedy = if error.is_retryable() { RESUME.to_owned() } else { String::new() };
    Refusal { kind: of_fetch(error), message: error.to_string(), remedy }
}

/// What helps whenever a transfer failed for a reason that may pass.
const RESUME: &str = "run the same command again; what has arrived is kept";

/// The answer to a call that failed while fetching.
pub fn fetch_status(error: &FetchError) -> Status {
    let remedy = if error.is_retryable() { RESUME } else { "" };
    Failure::new(of_fetch(error), remedy).into_status(&error.to_string())
}

/// The answer to a call that the store refused.
pub fn store_status(error: &StoreError) -> Status {
    Failure::new(of_store(error), "").into_status(&error.to_string())
}

/// The answer to a call about a volume that failed.
pub fn expose_status(error: &ExposeError) -> Status {
    Failure::new(of_expose(error), "").into_status(&error.to_string())
}

/// The answer to a call for someone who may not, or of whom that is not known.
pub fn access_status(error: &AccessError) -> Status {
    Failure::new(of_access(error), "").into_status(&error.to_string())
}

/// The answer to a call that makes no sense.
pub fn usage_status(message: &str) -> Status {
    Failure::new(FailureKind::Usage, "").into_status(message)
}

/// The answer to a call that the agent's end cuts off.
pub fn stopping_status() -> Status {
    Failure::new(FailureKind::TryAgain, RESUME).into_status("the agent is shutting down")
}

impl From<Invalid> for Status {
    fn from(invalid: Invalid) -> Self {
        usage_status(&invalid.0)
    }
}

/// A request that makes no sense.
#[derive(Debug)]
pub(crate) struct Invalid(pub(crate) String);

impl From<InvalidUri> for Invalid {
    fn from(error: InvalidUri) -> Self {
        Self(error.to_string())
    }
}

impl From<InvalidGlob> for Invalid {
    fn from(error: InvalidGlob) -> Self {
        Self(error.to_string())
    }
}

/// What a caller can do about an error of the access room.
pub fn of_access(error: &AccessError) -> FailureKind {
    match error {
        AccessError::NoPod { .. } | AccessError::Elsewhere { .. } => FailureKind::Usage,
        AccessError::Refused { .. } | AccessError::NotAllowed { .. } | AccessError::NoPinning { .. } => {
            FailureKind::NotPermitted
        }
        AccessError::Unverified { .. } => FailureKind::Unavailable,
        AccessError::Resolve(error) => of_resolve(error),
    }
}

/// What a caller can do about an error of the expose room.
pub fn of_expose(error: &ExposeError) -> FailureKind {
    match error {
        ExposeError::Store(error) => of_store(error),
        ExposeError::Mount { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            FailureKind::NotPermitted
        }
        ExposeError::Mount { .. } => FailureKind::Disk,
        ExposeError::Stopped { .. } => FailureKind::TryAgain,
        ExposeError::Memory { .. } => FailureKind::Memory,
        ExposeError::Occupied { .. } | ExposeError::BadTarget { .. } => FailureKind::Usage,
        ExposeError::NoFuse { .. } | ExposeError::Keeper { .. } => FailureKind::Unavailable,
    }
}

/// What a caller can do about an error of the fetch room.
pub fn of_fetch(error: &FetchError) -> FailureKind {
    match error {
        FetchError::Resolve(error) => of_resolve(error),
        FetchError::Source(error) | FetchError::Exhausted { source: error, .. } => of_source(error),
        FetchError::Store(error) => of_store(error),
        FetchError::Header { .. } | FetchError::WeightIndex { .. } | FetchError::Corrupt { .. } => {
            FailureKind::Corrupt
        }
        FetchError::Closed => FailureKind::TryAgain,
    }
}

/// What a caller can do about a source that cannot become a snapshot.
pub fn of_resolve(error: &ResolveError) -> FailureKind {
    match error {
        ResolveError::Source(error) => of_source(error),
        ResolveError::Selection(_) => FailureKind::Usage,
        ResolveError::Snapshot(error) => match error {
            SnapshotError::Empty { .. } => FailureKind::NotFound,
            SnapshotError::Duplicate { .. } | SnapshotError::TooLarge { .. } => FailureKind::Unavailable,
            SnapshotError::FileIsDirectory { .. } | SnapshotError::Reserved { .. } => FailureKind::Usage,
        },
    }
}

/// What a caller can do about an error of an origin.
pub fn of_source(error: &SourceError) -> FailureKind {
    match error {
        SourceError::NotFound { .. } => FailureKind::NotFound,
        SourceError::Denied { .. } | SourceError::Unauthenticated { .. } | SourceError::Redirected { .. } => {
            FailureKind::NotPermitted
        }
        SourceError::Changed { .. } | SourceError::Throttled { .. } => FailureKind::TryAgain,
        SourceError::Refused { .. } | SourceError::InvalidName { .. } | SourceError::Configuration { .. } => {
            FailureKind::Usage
        }
        SourceError::Unavailable { .. }
        | SourceError::Interrupted { .. }
        | SourceError::Paused { .. }
        | SourceError::Protocol { .. } => FailureKind::Unavailable,
    }
}

/// What a caller can do about an error of the store.
pub fn of_store(error: &StoreError) -> FailureKind {
    match error {
        StoreError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            FailureKind::NotPermitted
        }
        StoreError::Io { .. }
        | StoreError::Full { .. }
        | StoreError::ReadOnly { .. }
        | StoreError::Index { .. } => FailureKind::Disk,
        StoreError::NewerFormat { .. } | StoreError::NotAStore { .. } | StoreError::Ambiguous { .. } => {
            FailureKind::Usage
        }
        StoreError::NotFound { .. } => FailureKind::NotFound,
        StoreError::Locked { .. }
        | StoreError::Incomplete { .. }
        | StoreError::InUse { .. }
        | StoreError::InTier { .. }
        | StoreError::Closed => FailureKind::TryAgain,
        StoreError::Pinned { .. } | StoreError::Wanted { .. } => FailureKind::NotPermitted,
        StoreError::Damaged { .. } | StoreError::Manifest { .. } => FailureKind::Corrupt,
    }
}
