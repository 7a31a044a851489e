//! Why a lease ends, as its client is told.

use weightd_proto::v1::{FailureKind, HandoffFailed};

use crate::ExposeError;

/// Why a lease ends.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// What the client can do.
    pub kind: FailureKind,
    /// Object and cause.
    pub message: String,
    /// What the user can do, when the message does not say so.
    pub remedy: String,
}

impl Refusal {
    /// Of that kind, with a message that says enough.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), remedy: String::new() }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Usage, message)
    }

    pub(crate) fn memory(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Memory, message)
    }

    pub(crate) fn stopping() -> Self {
        Self::new(FailureKind::TryAgain, "the agent is shutting down")
    }

    pub(crate) fn of(error: &ExposeError) -> Self {
        let kind = match error {
            ExposeError::Memory { .. } => FailureKind::Memory,
            _ if error.is_retryable() => FailureKind::TryAgain,
            _ => FailureKind::Unavailable,
        };
        Self::new(kind, error.to_string())
    }

    pub(crate) fn into_message(self) -> HandoffFailed {
        HandoffFailed { kind: self.kind.into(), message: self.message, remedy: self.remedy }
    }
}
