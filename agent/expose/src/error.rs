//! What can go wrong while snapshots are shown.

use std::{
    io,
    path::{Path, PathBuf},
};

use weightd_store::StoreError;

/// What went wrong while a snapshot was shown.
#[derive(Debug, thiserror::Error)]
pub enum ExposeError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The kernel refused a mount.
    #[error("could not {action} {}: {source}{}", path.display(), remedy(source))]
    Mount {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Something else is mounted where a volume should be.
    #[error("{} shows {found}; unmount it first, or choose another directory", path.display())]
    Occupied {
        /// Where.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// A target that cannot be one.
    #[error("{} cannot be a volume: {why}", path.display())]
    BadTarget {
        /// The target.
        path: PathBuf,
        /// Why not.
        why: &'static str,
    },
    /// Other volumes of the snapshot are stopped, and the kernel keeps one state of its files for all of them.
    #[error("{} cannot show the snapshot yet: {why}", path.display())]
    Stopped {
        /// The target.
        path: PathBuf,
        /// Why they were stopped, and what to do.
        why: String,
    },
    /// The snapshot is still loading, and FUSE is not to be had.
    #[error("the snapshot is not complete and FUSE cannot be used: {why}; prefetch it first, then mount it")]
    NoFuse {
        /// Why.
        why: String,
    },
    /// There is no memory for tensors.
    #[error("{problem}")]
    Memory {
        /// Why.
        problem: String,
    },
    /// The keeper failed.
    #[error("the keeper at {} {problem}", socket.display())]
    Keeper {
        /// Its socket.
        socket: PathBuf,
        /// What went wrong.
        problem: String,
    },
}

impl ExposeError {
    pub(crate) fn mount(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Mount { action, path, source }
    }

    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Store(error) => error.is_retryable(),
            Self::Keeper { .. } | Self::Stopped { .. } | Self::Memory { .. } => true,
            Self::Mount { .. } | Self::Occupied { .. } | Self::BadTarget { .. } | Self::NoFuse { .. } => {
                false
            }
        }
    }

    /// A stable word for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Store(error) => error.kind(),
            Self::Mount { .. } => "mount",
            Self::Occupied { .. } => "occupied",
            Self::BadTarget { .. } => "bad_target",
            Self::Stopped { .. } => "stopped",
            Self::NoFuse { .. } => "no_fuse",
            Self::Memory { .. } => "memory",
            Self::Keeper { .. } => "keeper",
        }
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; mounting needs root (CAP_SYS_ADMIN), in a container a privileged one"
        }
        _ => "",
    }
}
