//! Why a command ends without having done what it was asked to.

use std::io;

use weightd::failure;
use weightd_daemon::Exit;
use weightd_image::ImageError;

/// Why a command ends without having done what it was asked to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// The agent said no, or could not be reached.
    #[error(transparent)]
    Agent(#[from] weightd_client::Error),
    /// The agent in this process did not start.
    #[error("cannot work without an agent: {0}")]
    Start(#[from] weightd::StartError),
    /// The configuration of the agent in this process is wrong.
    #[error(transparent)]
    Config(#[from] weightd::ConfigError),
    /// An image or an export failed.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Options that do not go together.
    #[error("{0}")]
    Usage(String),
    /// Chunks are bad and could not be repaired.
    #[error("{0}")]
    Corrupt(String),
    /// An image is not what it should be.
    #[error("{0}")]
    BadImage(String),
    /// Not now.
    #[error("{message}")]
    TryAgain {
        /// What is not ready.
        message: String,
        /// What makes it so.
        remedy: String,
    },
    /// The agent ended a stream without its last message.
    #[error("the agent ended the call without a result")]
    NoResult,
    /// A file or stdout cannot be written.
    #[error("cannot write {what}: {cause}")]
    Write {
        /// Which file.
        what: String,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// Whoever read stdout has gone, which is their right.
    #[error("nobody reads the output")]
    ClosedPipe,
    /// Stopped by a signal.
    #[error("{message}")]
    Interrupted {
        /// What that means for what was under way.
        message: String,
        /// How to end.
        exit: Exit,
    },
    /// No threads.
    #[error("cannot start: {0}")]
    Runtime(io::Error),
}

impl CommandError {
    /// How the program ends.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Agent(error) => error.kind().into(),
            Self::Start(error) => error.kind().into(),
            Self::Image(error) => exit_of_image(error),
            Self::Config(_) | Self::Usage(_) => Exit::Usage,
            Self::Corrupt(_) | Self::BadImage(_) => Exit::Corrupt,
            Self::TryAgain { .. } => Exit::TryAgain,
            Self::NoResult => Exit::Unavailable,
            Self::Write { .. } => Exit::Disk,
            Self::ClosedPipe => Exit::Done,
            Self::Interrupted { exit, .. } => *exit,
            Self::Runtime(_) => Exit::TryAgain,
        }
    }

    /// What to do about it, when the message does not say so.
    pub(crate) fn hint(&self) -> Option<&str> {
        match self {
            Self::Agent(error) => error.remedy(),
            Self::TryAgain { remedy, .. } => Some(remedy),
            Self::Usage(_) => Some("`weightctl --help` lists commands and options"),
            Self::Corrupt(_) => Some(
                "`weightctl verify` without --no-repair fetches bad chunks again; `weightctl rm` and `weightctl prefetch` start afresh",
            ),
            Self::NoResult => Some("see the agent's log, then run the same command again"),
            Self::Start(_)
            | Self::Image(_)
            | Self::BadImage(_)
            | Self::Config(_)
            | Self::Write { .. }
            | Self::ClosedPipe
            | Self::Interrupted { .. }
            | Self::Runtime(_) => None,
        }
    }
}

fn exit_of_image(error: &ImageError) -> Exit {
    match error {
        ImageError::Fetch(error) => failure::of_fetch(error).into(),
        ImageError::Store(error) => failure::of_store(error).into(),
        ImageError::Upload(error) => failure::of_source(error).into(),
        ImageError::TooSmall { .. } | ImageError::Usage(_) | ImageError::NotAnImage { .. } => Exit::Usage,
        ImageError::Busy { .. } => Exit::TryAgain,
        ImageError::Io { cause, .. } if cause.kind() == io::ErrorKind::PermissionDenied => Exit::NotPermitted,
        ImageError::Io { cause, .. } if cause.kind() == io::ErrorKind::NotFound => Exit::NotFound,
        ImageError::Full { .. } | ImageError::Io { .. } => Exit::Disk,
        ImageError::FileSystem { .. } | ImageError::Archive { .. } | ImageError::Damaged { .. } => {
            Exit::Corrupt
        }
    }
}
