//! Why an agent does not start.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use weightd_daemon::SocketError;
use weightd_proto::v1::FailureKind;

/// Why an agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] weightd_store::StoreError),
    /// Volumes cannot be looked after.
    #[error(transparent)]
    Volumes(#[from] weightd_expose::ExposeError),
    /// Another agent serves the socket.
    #[error("another agent listens on {socket}: stop it, or name another socket with --socket")]
    SocketInUse {
        /// The socket.
        socket: PathBuf,
    },
    /// Something else has the socket's name.
    #[error("{socket} is there and is not a socket: move it away, or name another socket with --socket")]
    NotASocket {
        /// The file.
        socket: PathBuf,
    },
    /// The socket cannot be made.
    #[error("cannot make the socket {socket}: {cause}; name another with --socket")]
    Socket {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// The HTTP port cannot be had.
    #[error("cannot listen on {address} for metrics: {cause}; name another with --metrics-address, or off")]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// The system gives no threads, or no signals.
    #[error("cannot start: {0}; see `ulimit -u` and `ulimit -n`, then start it again")]
    Process(#[source] io::Error),
}

impl StartError {
    /// Why a socket cannot be had.
    pub(crate) fn of_socket(socket: &Path, error: SocketError) -> Self {
        let socket = socket.to_owned();
        match error {
            SocketError::InUse => Self::SocketInUse { socket },
            SocketError::NotASocket => Self::NotASocket { socket },
            SocketError::Io(cause) => Self::Socket { socket, cause },
        }
    }

    /// What can be done about it, as clients see it.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Store(error) => weightd_control::failure::of_store(error),
            Self::Volumes(error) => weightd_control::failure::of_expose(error),
            Self::SocketInUse { .. } => FailureKind::TryAgain,
            Self::NotASocket { .. } => FailureKind::Usage,
            Self::Process(_) => FailureKind::TryAgain,
            Self::Socket { cause, .. } | Self::Metrics { cause, .. } => match cause.kind() {
                io::ErrorKind::PermissionDenied => FailureKind::NotPermitted,
                _ => FailureKind::Unavailable,
            },
        }
    }
}
