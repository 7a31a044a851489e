//! What a caller of the agent can meet.

use std::{io, path::PathBuf};

use tonic::{Code, Status};
use weightd_proto::v1::{Failure, FailureKind};

/// Why a call was not answered as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The agent could not be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The agent went away in the middle of a call.
    #[error("the agent went away during the call ({0}); every call may be repeated once weightd runs again")]
    Lost(String),
    /// The agent answered with an error.
    #[error("{message}")]
    Failed {
        /// What the caller can do.
        kind: FailureKind,
        /// What is wrong, with the name of what it concerns.
        message: String,
        /// What the user can do; empty when the message says so.
        remedy: String,
    },
}

/// Why the agent could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No such file.
    #[error(
        "there is no socket {socket}; is weightd running? Name another with --socket, or work without an agent with --store DIR"
    )]
    Missing {
        /// The socket.
        socket: PathBuf,
    },
    /// A socket nobody listens on.
    #[error(
        "nobody listens on {socket}: an agent that is gone left it behind; start weightd, or work without an agent with --store DIR"
    )]
    Refused {
        /// The socket.
        socket: PathBuf,
    },
    /// A file of another kind.
    #[error("{socket} is not a socket; name the agent's with --socket, or its store with --store")]
    NotASocket {
        /// The file.
        socket: PathBuf,
    },
    /// The agent's socket is its owner's alone.
    #[error(
        "permission denied on {socket}: only the user that runs weightd may use it; run this as that user, or work without an agent with --store DIR"
    )]
    NotPermitted {
        /// The socket.
        socket: PathBuf,
    },
    /// Anything else.
    #[error(
        "cannot connect to {socket}: {cause}; name the agent's socket with --socket, or work without an agent with --store DIR"
    )]
    Other {
        /// The socket.
        socket: PathBuf,
        /// What the system or the transport said.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// What the caller can do about it.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Connect(ConnectError::NotPermitted { .. }) => FailureKind::NotPermitted,
            Self::Connect(_) | Self::Lost(_) => FailureKind::Unavailable,
            Self::Failed { kind, .. } => *kind,
        }
    }

    /// Whether nobody answered, or someone who is about to leave: whoever waits finds the next agent. Anything else was
    /// said by an agent that is there and stays.
    pub fn is_absence(&self) -> bool {
        match self {
            Self::Connect(_) | Self::Lost(_) => true,
            Self::Failed { kind, .. } => *kind == FailureKind::TryAgain,
        }
    }

    /// What the user can do, when the message does not say so.
    pub fn remedy(&self) -> Option<&str> {
        match self {
            Self::Failed { remedy, .. } if !remedy.is_empty() => Some(remedy),
            Self::Connect(_) | Self::Lost(_) | Self::Failed { .. } => None,
        }
    }
}

impl ConnectError {
    pub(crate) fn from_io(socket: PathBuf, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::Missing { socket },
            io::ErrorKind::PermissionDenied => Self::NotPermitted { socket },
            // The kernel refuses connections to files that are no sockets just as to dead ones.
            io::ErrorKind::ConnectionRefused if is_socket(&socket) => Self::Refused { socket },
            io::ErrorKind::ConnectionRefused => Self::NotASocket { socket },
            _ => Self::Other { socket, cause: error.into() },
        }
    }
}

fn is_socket(path: &std::path::Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        if let Some(failure) = Failure::of(&status) {
            let (kind, message) = (failure.kind(), status.message().to_owned());
            return Self::Failed { kind, message, remedy: failure.remedy };
        }
        // A status that the transport made up, not the agent, has a cause.
        if let Some(cause) = std::error::Error::source(&status) {
            return Self::Lost(innermost(cause));
        }
        let message = match status.code() {
            Code::Unimplemented => {
                "the agent does not know this call: it is of another version than this program".to_owned()
            }
            code => format!("{} ({code})", status.message()),
        };
        Self::Failed { kind: kind_of(status.code()), message, remedy: String::new() }
    }
}

/// The last cause of a chain, which names the system's error instead of "transport error".
fn innermost(mut error: &dyn std::error::Error) -> String {
    while let Some(cause) = error.source() {
        error = cause;
    }
    error.to_string()
}

/// For errors that carry no [`Failure`]: those of the transport's own library at the other end.
fn kind_of(code: Code) -> FailureKind {
    match code {
        Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition => FailureKind::Usage,
        Code::NotFound => FailureKind::NotFound,
        Code::PermissionDenied | Code::Unauthenticated => FailureKind::NotPermitted,
        Code::DataLoss => FailureKind::Corrupt,
        Code::Aborted | Code::Cancelled | Code::DeadlineExceeded => FailureKind::TryAgain,
        Code::Ok
        | Code::Unknown
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable => FailureKind::Unavailable,
    }
}
