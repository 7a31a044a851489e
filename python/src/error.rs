//! What goes wrong, and the Python exception it becomes.

use std::{io, path::PathBuf, time::Duration};

use pyo3::PyErr;
use weightd_client::handoff::{self, FailureKind};
use weightd_types::{HeaderError, SliceError, WeightIndexError};

use crate::cuda::{Failure, Refusal};

/// Longest message. A header from outside may have a name of megabytes, which its parser repeats.
const MESSAGE_CHARACTERS: usize = 1000;

/// Everything that goes wrong here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{}: no such file or directory", .0.display())]
    NotFound(PathBuf),
    #[error("{} is a URI, which only an agent can open, and agent=False forbids to ask one: show it as a directory (`weightctl mount URI DIRECTORY`) and open that", .0.display())]
    Uri(PathBuf),
    #[error("{what}: {source}{}", remedy(what, source))]
    Handoff {
        /// Path or URI.
        what: String,
        #[source]
        source: handoff::Error,
    },
    #[error("{what}: the agent went away, and no other came within {} s; tensors that were ready stay right, for the others open it again once weightd runs", waited.as_secs())]
    Lost {
        /// Path or URI.
        what: String,
        waited: Duration,
    },
    #[error(
        "{what}: the tensor {tensor:?} was handed out before its file was compared with the origin, and is not what the origin has; open it again"
    )]
    Wrong {
        /// Path or URI.
        what: String,
        tensor: String,
    },
    #[error("{} is not below the directory of {}: an agent knows its files by where they are from there", path.display(), socket.display())]
    NotBelow { path: PathBuf, socket: PathBuf },
    #[error(
        "{what}: the agent sent tensors of {file}, which was not asked for; it is broken, or of another version than this package"
    )]
    OtherFile { what: String, file: String },
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is neither a file nor a directory", .0.display())]
    NoFile(PathBuf),
    #[error("{} holds no .safetensors file", .0.display())]
    NoWeights(PathBuf),
    #[error("{} holds {} indices ({}): open the directory or file of one model", directory.display(), names.len(), names.join(", "))]
    Indices { directory: PathBuf, names: Vec<String> },
    #[error("{} {source}", path.display())]
    Header {
        path: PathBuf,
        #[source]
        source: HeaderError,
    },
    #[error("{} {source}", path.display())]
    Index {
        path: PathBuf,
        #[source]
        source: WeightIndexError,
    },
    #[error("{} names the shard {shard:?}, which is not below its directory", path.display())]
    Outside { path: PathBuf, shard: String },
    #[error("{} and {} both hold the tensor {tensor:?}", first.display(), second.display())]
    Duplicate { tensor: String, first: PathBuf, second: PathBuf },
    #[error("{} does not contain tensor {tensor:?}", path.display())]
    NoTensor { path: PathBuf, tensor: String },
    /// An argument that makes no sense.
    #[error("{0}")]
    Argument(String),
    #[error("{}: {source}", what.display())]
    Slice {
        what: PathBuf,
        #[source]
        source: SliceError,
    },
    /// An agent that was asked for slices cannot cut them.
    #[error("{what}: {source}{}", remedy(what, source))]
    Uncut {
        /// Path or URI.
        what: String,
        #[source]
        source: handoff::Error,
    },
    #[error("{} was closed", .0.display())]
    Closed(PathBuf),
    #[error("{}: {reason}; so the tensor {tensor:?} cannot be shared", path.display())]
    Share { path: PathBuf, tensor: String, reason: String },
    #[error("{}: no memory for a copy of {bytes} bytes, which the tensor {tensor:?} has", path.display())]
    NoMemory { path: PathBuf, tensor: String, bytes: usize },
    /// Asked for when tensors were opened.
    #[error("device {device}: {reason}")]
    NoDevice {
        device: String,
        #[source]
        reason: Refusal,
    },
    #[error("{}: the tensor {tensor:?} cannot be copied to {device}: {reason}", path.display())]
    Unusable {
        path: PathBuf,
        tensor: String,
        device: String,
        #[source]
        reason: Refusal,
    },
    #[error("{}: the tensor {tensor:?} could not be copied to {device}: {source}", path.display())]
    Device {
        path: PathBuf,
        tensor: String,
        device: String,
        #[source]
        source: Failure,
    },
}

/// The exceptions, which Python defines: each is also the built-in one that a caller might expect.
mod exceptions {
    use pyo3::import_exception;

    import_exception!(weightd.errors, NotFound);
    import_exception!(weightd.errors, Unreadable);
    import_exception!(weightd.errors, InvalidFile);
    import_exception!(weightd.errors, TensorNotFound);
    import_exception!(weightd.errors, Closed);
    import_exception!(weightd.errors, CannotShare);
    import_exception!(weightd.errors, NoMemory);
    import_exception!(weightd.errors, RingFull);
    import_exception!(weightd.errors, InvalidArgument);
    import_exception!(weightd.errors, NoAgent);
    import_exception!(weightd.errors, NotPermitted);
    import_exception!(weightd.errors, AgentFailed);
    import_exception!(weightd.errors, Unsupported);
    import_exception!(weightd.errors, DeviceFailed);
}

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        let message = one_line(&error.to_string());
        match error {
            Error::NotFound(_) | Error::Uri(_) | Error::NoWeights(_) => {
                exceptions::NotFound::new_err(message)
            }
            Error::Io { .. } | Error::NoFile(_) => exceptions::Unreadable::new_err(message),
            Error::Indices { .. }
            | Error::Header { .. }
            | Error::Index { .. }
            | Error::Outside { .. }
            | Error::Wrong { .. }
            | Error::Duplicate { .. } => exceptions::InvalidFile::new_err(message),
            Error::NoTensor { .. } => exceptions::TensorNotFound::new_err(message),
            Error::Argument(_) | Error::Slice { .. } | Error::Uncut { .. } => {
                exceptions::InvalidArgument::new_err(message)
            }
            Error::Closed(_) => exceptions::Closed::new_err(message),
            Error::Share { .. } => exceptions::CannotShare::new_err(message),
            Error::NoMemory { .. } => exceptions::NoMemory::new_err(message),
            Error::Handoff { source, .. } => of_agent(&source, message),
            Error::Lost { .. } => exceptions::NoAgent::new_err(message),
            Error::NotBelow { .. } | Error::NoDevice { .. } => exceptions::Unsupported::new_err(message),
            Error::Unusable { .. } | Error::Device { .. } => exceptions::DeviceFailed::new_err(message),
            Error::OtherFile { .. } => exceptions::AgentFailed::new_err(message),
        }
    }
}

/// What an agent says, or that it says nothing.
fn of_agent(error: &handoff::Error, message: String) -> PyErr {
    if matches!(error, handoff::Error::Failed { .. } | handoff::Error::Connect { .. }) {
        match error.kind() {
            FailureKind::NotFound => return exceptions::NotFound::new_err(message),
            FailureKind::Corrupt => return exceptions::InvalidFile::new_err(message),
            FailureKind::NotPermitted => return exceptions::NotPermitted::new_err(message),
            FailureKind::Memory => return exceptions::NoMemory::new_err(message),
            FailureKind::Unspecified
            | FailureKind::Usage
            | FailureKind::Unavailable
            | FailureKind::Disk
            | FailureKind::TryAgain => {}
        }
    }
    match error {
        handoff::Error::Connect { .. } | handoff::Error::Silent { .. } | handoff::Error::AgentGone { .. } => {
            exceptions::NoAgent::new_err(message)
        }
        handoff::Error::RingFull { .. } => exceptions::RingFull::new_err(message),
        handoff::Error::Failed { .. }
        | handoff::Error::Broken { .. }
        | handoff::Error::Changed { .. }
        | handoff::Error::System { .. } => exceptions::AgentFailed::new_err(message),
    }
}

/// What to do, behind the message.
fn remedy(what: &str, error: &handoff::Error) -> String {
    if let Some(remedy) = error.remedy() {
        return format!("; {remedy}");
    }
    match error {
        handoff::Error::Connect { .. } if what.contains("://") => {
            "; name its socket with agent= or WEIGHTD_HANDOFF_SOCKET, or show the model as a directory (`weightctl mount URI DIRECTORY`) and open that".to_owned()
        }
        _ => String::new(),
    }
}

/// A message that cannot break the log it ends in.
pub(crate) fn one_line(message: &str) -> String {
    let mut line: String =
        message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MESSAGE_CHARACTERS).collect();
    if message.chars().nth(MESSAGE_CHARACTERS).is_some() {
        line.push('…');
    }
    line
}
