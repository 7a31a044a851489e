//! Why a volume is not given to a pod.

use weightd_source::{ResolveError, SourceError};
use weightd_types::{Scheme, SourceUri};

use crate::identity::Principal;

/// Longest text of an origin that is repeated.
const DETAIL_CHARS: usize = 300;

/// Why a volume is not given to a pod. Each is one line, because kubelet writes it into an event of the pod.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// A target of a pod's, and nobody says which.
    #[error(
        "{target} is a volume of a pod's, because it is below {kubelet_directory}, and nobody said which pod's: mount elsewhere, \
         or let the CSI driver do it (podInfoOnMount: true in its CSIDriver)"
    )]
    NoPod {
        /// The target.
        target: String,
        /// What it is below.
        kubelet_directory: String,
    },
    /// A pod's volume where only the operator's are.
    #[error(
        "{target} is not below {kubelet_directory}, where volumes of pods are: set access.kubelet_directory to the --root-dir of \
         kubelet"
    )]
    Elsewhere {
        /// The target.
        target: String,
        /// What it is not below.
        kubelet_directory: String,
    },
    /// The origin, or who vouches for the pod, says no.
    #[error("{what}: {verdict} for {principal} ({detail}): {remedy}")]
    Refused {
        /// Source or object.
        what: String,
        /// A status, where it has one.
        verdict: &'static str,
        /// Who was refused.
        principal: String,
        /// What the origin said.
        detail: String,
        /// What the user can do.
        remedy: String,
    },
    /// A directory or server that the operator did not allow.
    #[error(
        "{what}: pods may not read it: the operator can allow it with {setting} in the agent's configuration"
    )]
    NotAllowed {
        /// The source.
        what: String,
        /// The list that it is not on.
        setting: &'static str,
    },
    /// A pod that wants its model kept for ever.
    #[error(
        "{what}: pods may not pin: ask the operator to set access.pods_may_pin = true in the agent's configuration, or leave \
         pin out"
    )]
    NoPinning {
        /// The source.
        what: String,
    },
    /// What vouches for the pod cannot be asked, and no earlier answer counts.
    #[error("{what}: {principal} cannot be verified: {why}; kubelet tries again")]
    Unverified {
        /// The source.
        what: String,
        /// Whose token it is.
        principal: String,
        /// What happened.
        why: String,
    },
    /// The source cannot be resolved, whoever asks.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
}

/// How an origin refuses someone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It says so.
    Denied,
    /// It says that nothing is there, as the hub does of a private repository to whoever may not see it.
    Hidden,
}

impl Refusal {
    /// What an error of an origin of that kind says of who asked, if anything.
    pub(crate) fn of(error: &SourceError, scheme: Scheme) -> Option<Self> {
        match error {
            SourceError::Denied { .. }
            | SourceError::Unauthenticated { .. }
            | SourceError::Redirected { .. } => Some(Self::Denied),
            SourceError::NotFound { .. } if scheme == Scheme::Hf => Some(Self::Hidden),
            _ => None,
        }
    }
}

impl AccessError {
    /// Whether it says no, so that no earlier answer counts any more.
    pub(crate) fn is_refusal(&self, scheme: Scheme) -> bool {
        match self {
            Self::Refused { .. } | Self::NotAllowed { .. } | Self::NoPinning { .. } => true,
            Self::Resolve(ResolveError::Source(error)) => Refusal::of(error, scheme).is_some(),
            Self::Resolve(_) | Self::NoPod { .. } | Self::Elsewhere { .. } | Self::Unverified { .. } => false,
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unverified { .. } => true,
            Self::Resolve(error) => error.is_retryable(),
            Self::NoPod { .. }
            | Self::Elsewhere { .. }
            | Self::Refused { .. }
            | Self::NotAllowed { .. }
            | Self::NoPinning { .. } => false,
        }
    }

    /// What an origin said to a principal.
    pub(crate) fn of(error: ResolveError, uri: &SourceUri, principal: &Principal) -> Self {
        let ResolveError::Source(error) = error else { return Self::Resolve(error) };
        let (verdict, what, detail, remedy) = match error {
            SourceError::Denied { what, detail, remedy } => ("403", what, detail, remedy),
            SourceError::Unauthenticated { what, detail, remedy } => ("401", what, detail, remedy),
            other => return Self::Resolve(other.into()),
        };
        let remedy = principal.remedy(uri, verdict).unwrap_or(remedy);
        Self::Refused { what, verdict, principal: principal.to_string(), detail: line(&detail), remedy }
    }
}

/// One short line of a text from outside.
pub(crate) fn line(text: &str) -> String {
    let text = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    text.take(DETAIL_CHARS).collect::<String>().trim().to_owned()
}
