//! What can go wrong, and what kubelet or the provisioner is told. Its words become the events of a pod or a claim: one
//! line that names the object, the cause and the remedy.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use tonic::{Code, Status};
use weightd_daemon::SocketError;
use weightd_proto::{shortened, v1::FailureKind};

use crate::{
    attributes::InvalidAttribute, capability::InvalidCapability, pod::InvalidPod, target::InvalidTarget,
};

/// What is said when doing nothing helps.
const AGAIN: &str = "Kubernetes tries again by itself";
/// Longest message; kubelet's events hold a kilobyte.
const MAX_MESSAGE_BYTES: usize = 900;

/// Why a call of kubelet's was not answered as asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error(transparent)]
    Attribute(#[from] InvalidAttribute),
    #[error(transparent)]
    Pod(#[from] InvalidPod),
    #[error(transparent)]
    Capability(#[from] InvalidCapability),
    #[error(transparent)]
    Target(#[from] InvalidTarget),
    #[error("{what} is missing from the request")]
    Missing { what: &'static str },
    #[error(
        "volumes cannot be made from other volumes or snapshots: name the model by the parameter \"source\""
    )]
    ContentSource,
    #[error("there is no volume {id:?}")]
    NoSuchVolume { id: String },
    #[error("there is no volume at {path:?}")]
    NoVolumeAt { path: String },
    #[error("a volume {name:?} was made already, with other parameters or another size: delete it first")]
    AlreadyMade { name: String },
    #[error("{source_uri} has {bytes} bytes, and the volume must not have more than {limit}")]
    TooLarge { source_uri: String, bytes: u64, limit: i64 },
    #[error(
        "weightd's agent on this node cannot be reached at {} ({why}); {AGAIN}, see the pods of the DaemonSet weightd on this \
         node if it stays away", socket.display()
    )]
    Away { socket: PathBuf, why: String },
    #[error("weightd's agent on this node has not answered within {} s when it was to {what}; {AGAIN}", limit.as_secs())]
    Slow { what: String, limit: Duration },
    #[error("{message}{}", remedy(*kind, given))]
    Agent {
        kind: FailureKind,
        message: String,
        /// The agent's own; empty when its message says enough.
        given: String,
    },
    #[error("{} is in the hands of an earlier call, which goes on; {AGAIN}", target.display())]
    Busy { target: PathBuf },
    #[error(
        "{source_uri}: {present} of {size} bytes are here; the pod starts when all of them are (wait: ready); {AGAIN}, and the \
         transfer goes on"
    )]
    Loading { source_uri: String, present: u64, size: u64 },
    #[error("the driver is being restarted; {AGAIN}")]
    Stopping,
    #[error("cannot {action} {}: {cause}; {hint}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        cause: io::Error,
        hint: &'static str,
    },
    #[error("a defect of weightd-csi: {0}")]
    Defect(String),
}

fn remedy(kind: FailureKind, given: &str) -> String {
    match kind {
        FailureKind::Unavailable | FailureKind::TryAgain => format!("; {AGAIN}"),
        FailureKind::Unspecified
        | FailureKind::Usage
        | FailureKind::Corrupt
        | FailureKind::NotFound
        | FailureKind::Disk
        | FailureKind::Memory
        | FailureKind::NotPermitted => {
            if given.is_empty() {
                String::new()
            } else {
                format!("; {given}")
            }
        }
    }
}

impl CallError {
    /// The code that says most nearly the same.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Attribute(_)
            | Self::Pod(_)
            | Self::Capability(_)
            | Self::Target(_)
            | Self::Missing { .. }
            | Self::ContentSource => Code::InvalidArgument,
            Self::NoSuchVolume { .. } | Self::NoVolumeAt { .. } => Code::NotFound,
            Self::AlreadyMade { .. } => Code::AlreadyExists,
            Self::TooLarge { .. } => Code::OutOfRange,
            Self::Away { .. } | Self::Stopping => Code::Unavailable,
            Self::Slow { .. } | Self::Loading { .. } => Code::DeadlineExceeded,
            Self::Agent { kind, .. } => kind.code(),
            Self::Busy { .. } => Code::Aborted,
            Self::Io { .. } | Self::Defect(_) => Code::Internal,
        }
    }

    /// Whether kubelet takes it for the end of an attempt, after which nothing is mounted. After any other it keeps in
    /// mind that something may be.
    pub(crate) fn is_final(&self) -> bool {
        !matches!(
            self.code(),
            Code::Cancelled
                | Code::DeadlineExceeded
                | Code::Unavailable
                | Code::ResourceExhausted
                | Code::Aborted
        )
    }
}

impl From<CallError> for Status {
    fn from(error: CallError) -> Self {
        Self::new(error.code(), one_line(&error.to_string()))
    }
}

/// Without line breaks and control characters, and no longer than an event may be.
fn one_line(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    shortened(&text, MAX_MESSAGE_BYTES)
}

/// Why the driver does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another driver serves the socket.
    #[error("another driver listens on {}: stop it first, or name another socket", socket.display())]
    SocketInUse {
        /// The socket.
        socket: PathBuf,
    },
    /// Something else has the socket's name.
    #[error("{} is there and is not a socket: move it away, or name another", socket.display())]
    NotASocket {
        /// The file.
        socket: PathBuf,
    },
    /// The socket cannot be made.
    #[error("cannot make the socket {}: {cause}; name another with --endpoint or --registration-dir", socket.display())]
    Socket {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// The HTTP port cannot be had.
    #[error(
        "cannot listen on {address} for health and metrics: {cause}; name another with --http-address, or off"
    )]
    Http {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
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

    /// What can be done about it.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::SocketInUse { .. } => FailureKind::TryAgain,
            Self::NotASocket { .. } => FailureKind::Usage,
            Self::Socket { cause, .. } | Self::Http { cause, .. } => match cause.kind() {
                io::ErrorKind::PermissionDenied => FailureKind::NotPermitted,
                _ => FailureKind::Unavailable,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(kind: FailureKind, given: &str) -> CallError {
        let message = "gs://models/x: 403: no access".to_owned();
        CallError::Agent { kind, message, given: given.to_owned() }
    }

    #[test]
    fn each_kind_of_failure_has_a_code_of_its_own() {
        for (kind, code, is_final) in [
            (FailureKind::Usage, Code::InvalidArgument, true),
            (FailureKind::Corrupt, Code::DataLoss, true),
            (FailureKind::NotFound, Code::NotFound, true),
            (FailureKind::NotPermitted, Code::PermissionDenied, true),
            (FailureKind::Unavailable, Code::Unavailable, false),
            (FailureKind::Disk, Code::ResourceExhausted, false),
            (FailureKind::Memory, Code::ResourceExhausted, false),
            (FailureKind::TryAgain, Code::Aborted, false),
        ] {
            let error = agent(kind, "");
            assert_eq!((error.code(), error.is_final()), (code, is_final), "{kind:?}");
        }
        let away = CallError::Away { socket: "/run/x.sock".into(), why: "gone".to_owned() };
        assert_eq!((away.code(), away.is_final()), (Code::Unavailable, false));
    }

    #[test]
    fn a_message_is_one_line_with_the_object_first_and_the_remedy_last() {
        let status = Status::from(agent(FailureKind::Unavailable, "run the same command again"));
        assert_eq!(status.message(), "gs://models/x: 403: no access; Kubernetes tries again by itself");
        let status = Status::from(agent(FailureKind::NotPermitted, "grant it"));
        assert_eq!(status.message(), "gs://models/x: 403: no access; grant it");
        assert_eq!(one_line("a\nb\tc"), "a b c");
        let long = one_line(&format!("gs://b/{}: delete it", "ü".repeat(3000)));
        assert!(
            long.len() <= MAX_MESSAGE_BYTES && long.starts_with("gs://b/ü") && long.ends_with("ü: delete it")
        );
    }
}
