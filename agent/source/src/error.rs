//! What can go wrong at an origin.

use std::time::Duration;

use weightd_types::SourceUri;

use crate::Credential;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// What went wrong at an origin, sorted by what the caller can do about it. `what` always names the object or
/// the source by its full URL.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No such bucket, repository, directory or object.
    #[error("{what}: not found; {remedy}")]
    NotFound {
        /// Object or source.
        what: String,
        /// What the user can do.
        remedy: String,
    },
    /// The identity is known and may not.
    #[error("{what}: permission denied ({detail}); {remedy}")]
    Denied {
        /// Object or source.
        what: String,
        /// What the origin said.
        detail: String,
        /// What the user can do.
        remedy: String,
    },
    /// No identity, or an expired one.
    #[error("{what}: not authenticated ({detail}); {remedy}")]
    Unauthenticated {
        /// Object or source.
        what: String,
        /// What the origin or the credentials library said.
        detail: String,
        /// What the user can do.
        remedy: String,
    },
    /// The pinned version is gone.
    #[error(
        "{what}: was overwritten or deleted while it was being fetched (expected {expected}); run the command again to take the new version"
    )]
    Changed {
        /// The object.
        what: String,
        /// The version pinned.
        expected: String,
    },
    /// The object exists and cannot be taken as it is stored.
    #[error("{what}: {why}; {remedy}")]
    Refused {
        /// The object.
        what: String,
        /// Why not.
        why: String,
        /// What the user can do.
        remedy: String,
    },
    /// The origin answers a request for a pod with a redirect that leads where pods may not.
    #[error("{what}: it redirects to {to}, where requests for pods do not go; {remedy}")]
    Redirected {
        /// Object or source.
        what: String,
        /// Where it leads, without its query.
        to: String,
        /// What the user can do.
        remedy: String,
    },
    /// An object whose name cannot become a file.
    #[error("{what}: {source}")]
    InvalidName {
        /// The source that lists it.
        what: String,
        /// Which name, and why.
        #[source]
        source: weightd_types::InvalidPath,
    },
    /// Configuration that cannot work.
    #[error("{what}: {why}")]
    Configuration {
        /// Source or setting.
        what: String,
        /// What is wrong, and the remedy.
        why: String,
    },
    /// The origin asks for fewer requests.
    #[error("{what}: the origin asks to slow down ({detail})")]
    Throttled {
        /// Object or source.
        what: String,
        /// Status line or message.
        detail: String,
        /// How long it asks to wait.
        retry_after: Option<Duration>,
    },
    /// The origin cannot be reached, or fails on its side.
    #[error("{what}: the origin is unavailable: {cause}")]
    Unavailable {
        /// Object or source.
        what: String,
        /// What happened.
        #[source]
        cause: Cause,
        /// How long it asks to wait.
        retry_after: Option<Duration>,
    },
    /// The connection broke within a body.
    #[error("{what}: the transfer broke off: {cause}")]
    Interrupted {
        /// The object.
        what: String,
        /// What happened.
        #[source]
        cause: Cause,
    },
    /// There is nobody at the moment as whom the origin may be asked.
    #[error("{what}: {why}")]
    Paused {
        /// The source.
        what: String,
        /// Who is waited for.
        why: String,
    },
    /// The origin answered with something no such origin should.
    #[error("{what}: the origin's answer makes no sense: {detail}")]
    Protocol {
        /// Object or source.
        what: String,
        /// What was wrong with it.
        detail: String,
    },
}

impl SourceError {
    /// Whether the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Throttled { .. }
            | Self::Unavailable { .. }
            | Self::Interrupted { .. }
            | Self::Paused { .. } => true,
            Self::NotFound { .. }
            | Self::Denied { .. }
            | Self::Unauthenticated { .. }
            | Self::Changed { .. }
            | Self::Refused { .. }
            | Self::Redirected { .. }
            | Self::InvalidName { .. }
            | Self::Configuration { .. }
            | Self::Protocol { .. } => false,
        }
    }

    /// Whether nothing can be asked for until someone comes as whom to ask.
    pub fn is_paused(&self) -> bool {
        matches!(self, Self::Paused { .. })
    }

    /// A credential of another kind of origin. It is not repeated.
    pub(crate) fn not_taken(uri: &SourceUri, credential: &Credential) -> Self {
        let kind = match credential {
            Credential::Node => "the node's own identity",
            Credential::Anonymous => "no identity",
            Credential::Google(_) => "an access token of Google's",
            Credential::S3(_) => "keys of S3",
            Credential::Hub(_) => "a token of the hub",
            Credential::Directory(_) => "a directory of this machine",
            Credential::Web(_) => "addresses of web servers",
        };
        let why = format!("{}:// does not take {kind}", uri.scheme().as_str());
        Self::Configuration { what: uri.to_string(), why }
    }

    /// How long the origin asks to wait before the next request.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { retry_after, .. } | Self::Unavailable { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The error of a bucket that is there and a prefix without objects: often the prefix is an object itself.
    pub(crate) fn nothing_below(uri: &SourceUri, is_object: bool) -> Self {
        let remedy = if uri.prefix().is_empty() {
            "it is there, and empty".to_owned()
        } else if is_object {
            let (directory, name) = uri.prefix().rsplit_once('/').unwrap_or(("", uri.prefix()));
            let slash = if directory.is_empty() { "" } else { "/" };
            let parent = format!("{}://{}{slash}{directory}", uri.scheme().as_str(), uri.authority());
            format!("it is an object, not a directory: write {parent} --include '{name}'")
        } else {
            let root = format!("{}://{}", uri.scheme().as_str(), uri.authority());
            format!("{root} is there and has no objects below this prefix: check the prefix")
        };
        Self::NotFound { what: uri.to_string(), remedy }
    }

    /// A stable word for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "not_found",
            Self::Denied { .. } => "denied",
            Self::Unauthenticated { .. } => "unauthenticated",
            Self::Changed { .. } => "changed",
            Self::Refused { .. } => "refused",
            Self::Redirected { .. } => "redirected",
            Self::InvalidName { .. } => "invalid_name",
            Self::Configuration { .. } => "configuration",
            Self::Throttled { .. } => "throttled",
            Self::Unavailable { .. } => "unavailable",
            Self::Interrupted { .. } => "interrupted",
            Self::Paused { .. } => "paused",
            Self::Protocol { .. } => "protocol",
        }
    }
}
