//! What a borrower of tensors can meet.

use std::{io, path::PathBuf, time::Duration};

use weightd_proto::v1::{FailureKind, HandoffFailed};

/// Why tensors are not lent. Each is told in one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens, or not for this user.
    #[error("cannot connect to {}: {source}; is weightd running on this node, and may this user connect to it?", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Nobody answered.
    #[error("{}: no agent answered within {waited:.1?}; is weightd running on this node?", socket.display())]
    Silent {
        /// The socket.
        socket: PathBuf,
        /// For how long it was waited.
        waited: Duration,
    },
    /// The connection ended. Tensors that were ready stay as they are.
    #[error("{}: the agent ended while tensors were missing; resume, and the next agent brings them", socket.display())]
    AgentGone {
        /// The socket.
        socket: PathBuf,
    },
    /// The agent said that it cannot.
    #[error("{message}")]
    Failed {
        /// What the caller can do.
        kind: FailureKind,
        /// What is wrong, with the name of what it concerns.
        message: String,
        /// What the user can do; empty when the message says so.
        remedy: String,
    },
    /// The agent said what nobody may say. Nothing of it is used.
    #[error("{}: the agent {problem}; it is broken, or of another version than this program", socket.display())]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// What it did.
        problem: String,
    },
    /// The next agent has something else.
    #[error("{}: {before} was open, and the agent there now has {now}; open it again", socket.display())]
    Changed {
        /// The socket.
        socket: PathBuf,
        /// The snapshot that was open.
        before: String,
        /// What there is.
        now: String,
    },
    /// There is no room for a tensor, because everything in the ring is in use, and nothing was given back for long.
    #[error("{}: the tensor {tensor:?} of {bytes} bytes has no room in one piece in the ring of {ring} bytes, where {tensors} tensors with {held} bytes are in use; let go of tensors before you take others, or make the ring larger, or open the model without one", socket.display())]
    RingFull {
        /// The socket.
        socket: PathBuf,
        /// Which tensor.
        tensor: String,
        /// How many bytes it has.
        bytes: usize,
        /// How many tensors are in use.
        tensors: usize,
        /// How many bytes of the ring these take.
        held: usize,
        /// How many bytes the ring has.
        ring: usize,
    },
    /// The system refused something that a connection needs.
    #[error("{}: {source}", socket.display())]
    System {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// What the caller can do about it.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Failed { kind, .. } => *kind,
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                FailureKind::NotPermitted
            }
            Self::Connect { .. } | Self::Silent { .. } | Self::AgentGone { .. } => FailureKind::Unavailable,
            Self::Changed { .. } => FailureKind::TryAgain,
            Self::RingFull { .. } => FailureKind::Memory,
            Self::Broken { .. } | Self::System { .. } => FailureKind::Unspecified,
        }
    }

    /// Whether nobody answered, or someone who is about to leave: whoever waits finds the next agent. Anything else was
    /// said by an agent that is there and stays.
    pub fn is_absence(&self) -> bool {
        match self {
            Self::Silent { .. } | Self::AgentGone { .. } => true,
            Self::Connect { source, .. } => {
                matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
            }
            Self::Failed { kind, .. } => *kind == FailureKind::TryAgain,
            Self::Broken { .. } | Self::Changed { .. } | Self::RingFull { .. } | Self::System { .. } => false,
        }
    }

    /// What the user can do, when the message does not say so.
    pub fn remedy(&self) -> Option<&str> {
        match self {
            Self::Failed { remedy, .. } if !remedy.is_empty() => Some(remedy),
            Self::Failed { .. }
            | Self::Connect { .. }
            | Self::Silent { .. }
            | Self::AgentGone { .. }
            | Self::Broken { .. }
            | Self::Changed { .. }
            | Self::RingFull { .. }
            | Self::System { .. } => None,
        }
    }
}

impl From<HandoffFailed> for Error {
    fn from(failed: HandoffFailed) -> Self {
        Self::Failed { kind: failed.kind(), message: failed.message, remedy: failed.remedy }
    }
}
