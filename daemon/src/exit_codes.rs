//! The exit codes of all programs, after `sysexits.h`, so that scripts can tell what to do next without
//! reading messages.

use std::process::ExitCode;

use weightd_proto::v1::FailureKind;

/// How a program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done as asked.
    Done = 0,
    /// The command line, a URI, a glob or the configuration makes no sense.
    Usage = 64,
    /// Bytes are not what they should be.
    Corrupt = 65,
    /// No such source, object or snapshot.
    NotFound = 66,
    /// The agent or the source cannot be reached.
    Unavailable = 69,
    /// A defect of weightd.
    Internal = 70,
    /// More memory than may be used for tensors.
    Memory = 71,
    /// The disk is full, read-only or failing.
    Disk = 74,
    /// The same command may succeed later.
    TryAgain = 75,
    /// Not authenticated, or not allowed.
    NotPermitted = 77,
    /// Ended by Ctrl-C; 128 and the signal's number, as shells have it.
    Interrupted = 130,
    /// Ended by SIGTERM.
    Terminated = 143,
}

impl From<FailureKind> for Exit {
    fn from(kind: FailureKind) -> Self {
        match kind {
            FailureKind::Unspecified => Self::Internal,
            FailureKind::Usage => Self::Usage,
            FailureKind::Corrupt => Self::Corrupt,
            FailureKind::NotFound => Self::NotFound,
            FailureKind::Unavailable => Self::Unavailable,
            FailureKind::Disk => Self::Disk,
            FailureKind::Memory => Self::Memory,
            FailureKind::TryAgain => Self::TryAgain,
            FailureKind::NotPermitted => Self::NotPermitted,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
