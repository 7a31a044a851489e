//! What can go wrong with a store.

use std::{io, path::PathBuf};

use weightd_types::display_bytes;

/// What went wrong with a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// What was attempted, as a verb: "write", "open".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// No room, and nothing that may be evicted.
    #[error("{}: {} needed, {} can be made free ({limit}); remove snapshots with `weightctl rm`, or unpin some", directory.display(), display_bytes(*.needed), display_bytes(*.available))]
    Full {
        /// The store.
        directory: PathBuf,
        /// Bytes asked for.
        needed: u64,
        /// Bytes that could be had, evictions included.
        available: u64,
        /// Which limit binds, and how to change it: the quota, or the floor of free space.
        limit: String,
    },
    /// The directory cannot be written.
    #[error("{}: the store is read-only; mount it read-write, or name another with --store", directory.display())]
    ReadOnly {
        /// The store.
        directory: PathBuf,
    },
    /// Another process has it open.
    #[error("{}: in use by another agent (process {pid}); talk to that one with --socket, stop it, or name another store", directory.display())]
    Locked {
        /// The store.
        directory: PathBuf,
        /// That process, or `unknown`.
        pid: String,
    },
    /// Written by a later weightd.
    #[error("{}: the store has format {found}, this weightd reads up to {}; use a newer weightd, or name another store", directory.display(), crate::FORMAT_VERSION)]
    NewerFormat {
        /// The store.
        directory: PathBuf,
        /// Its version.
        found: u32,
    },
    /// Something else: a directory with other things in it, or a file.
    #[error("{}: {why}; name an empty or new directory", directory.display())]
    NotAStore {
        /// The directory.
        directory: PathBuf,
        /// What it is instead.
        why: &'static str,
    },
    /// The index failed.
    #[error("{}: the index failed: {source}; it can be deleted while no agent runs, which costs only partial transfers and pins", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// What the database said.
        #[source]
        source: Box<redb::Error>,
    },
    /// No such snapshot.
    #[error(
        "{name}: no such snapshot in the store; `weightctl ls` shows what is there, `weightctl prefetch` brings more"
    )]
    NotFound {
        /// URI or id as asked for.
        name: String,
    },
    /// Several snapshots fit.
    #[error("{name}: names {count} snapshots; write more of the id")]
    Ambiguous {
        /// Beginning of an id.
        name: String,
        /// How many it fits.
        count: usize,
    },
    /// The snapshot is there and not whole.
    #[error("{name}: still incomplete; run `weightctl prefetch` to complete it")]
    Incomplete {
        /// URI or id.
        name: String,
    },
    /// Held by someone.
    #[error("{name}: in use; it can be removed when its volumes and transfers have ended")]
    InUse {
        /// URI or id.
        name: String,
    },
    /// Pinned.
    #[error("{name}: pinned; unpin it first, or use --force")]
    Pinned {
        /// URI or id.
        name: String,
    },
    /// Nobody can remove what is on a read-only tier.
    #[error("{name}: it is on a read-only tier, {}, and takes no room of the store's; it goes when that goes", directory.display())]
    InTier {
        /// URI or id.
        name: String,
        /// Its directory there.
        directory: PathBuf,
    },
    /// Kept because it is wanted here.
    #[error(
        "{name}: wanted on this node; take it out of the models that are wanted here, or use --force to have it fetched again"
    )]
    Wanted {
        /// URI or id.
        name: String,
    },
    /// Bytes on disk are not what was recorded.
    #[error("{}: chunk {chunk} is damaged on disk; run `weightctl verify` to repair it from the origin", path.display())]
    Damaged {
        /// The blob's file.
        path: PathBuf,
        /// The chunk.
        chunk: u32,
    },
    /// A manifest that cannot be read.
    #[error("{}: {why}; run `weightctl prefetch` again to replace it", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The store is closing.
    #[error("the agent is shutting down; run the command again")]
    Closed,
}

impl StoreError {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// Whether the same call may succeed later without anyone's doing.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::InUse { .. } | Self::Closed)
    }

    /// A stable word for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Io { .. } => "io",
            Self::Full { .. } => "full",
            Self::ReadOnly { .. } => "read_only",
            Self::Locked { .. } => "locked",
            Self::NewerFormat { .. } => "newer_format",
            Self::NotAStore { .. } => "not_a_store",
            Self::Index { .. } => "index",
            Self::NotFound { .. } => "not_found",
            Self::Ambiguous { .. } => "ambiguous",
            Self::Incomplete { .. } => "incomplete",
            Self::InUse { .. } => "in_use",
            Self::InTier { .. } => "in_tier",
            Self::Pinned { .. } => "pinned",
            Self::Wanted { .. } => "wanted",
            Self::Damaged { .. } => "damaged",
            Self::Manifest { .. } => "manifest",
            Self::Closed => "closed",
        }
    }
}
