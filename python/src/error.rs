//! What goes wrong, and the Python exception it becomes.

use std::{io, path::PathBuf};

use pyo3::PyErr;
use weightd_types::{HeaderError, WeightIndexError};

/// Longest message. A header from outside may have a name of megabytes, which its parser repeats.
const MESSAGE_CHARACTERS: usize = 1000;

/// Everything that goes wrong here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{}: no such file or directory", .0.display())]
    NotFound(PathBuf),
    #[error("{} is a URI, and a path is needed: show it as a directory (`weightctl mount URI DIRECTORY`) and open that", .0.display())]
    Uri(PathBuf),
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
    #[error("{} was closed", .0.display())]
    Closed(PathBuf),
    #[error("{}: {reason}; so the tensor {tensor:?} cannot be shared", path.display())]
    Share { path: PathBuf, tensor: String, reason: String },
    #[error("{}: no memory for a copy of {bytes} bytes, which the tensor {tensor:?} has", path.display())]
    NoMemory { path: PathBuf, tensor: String, bytes: usize },
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
            | Error::Duplicate { .. } => exceptions::InvalidFile::new_err(message),
            Error::NoTensor { .. } => exceptions::TensorNotFound::new_err(message),
            Error::Closed(_) => exceptions::Closed::new_err(message),
            Error::Share { .. } => exceptions::CannotShare::new_err(message),
            Error::NoMemory { .. } => exceptions::NoMemory::new_err(message),
        }
    }
}

/// A message that cannot break the log it ends in.
fn one_line(message: &str) -> String {
    let mut line: String =
        message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MESSAGE_CHARACTERS).collect();
    if message.chars().nth(MESSAGE_CHARACTERS).is_some() {
        line.push('…');
    }
    line
}
