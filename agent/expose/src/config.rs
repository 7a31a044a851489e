//! What an operator decides about showing snapshots.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use crate::HandoffConfig;

/// What an operator decides about showing snapshots. Checked by the agent's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the one FUSE mount of this node is, which volumes of snapshots that still load are binds of.
    pub directory: PathBuf,
    /// Socket of the keeper that holds the FUSE connection while no agent runs; without one the connection ends with
    /// this process.
    pub keeper: Option<PathBuf>,
    /// How long a read waits for bytes before it fails with EIO.
    pub read_timeout: Duration,
    /// How long the keeper lets readers wait for an agent before it fails their reads with EIO.
    pub agent_timeout: Duration,
    /// Threads that take requests from the kernel.
    pub threads: usize,
    /// What the kernel reads ahead of a reader through FUSE.
    pub read_ahead_bytes: u64,
    /// Memory for chunks on their way to readers.
    pub buffer_bytes: u64,
    /// Whether complete files are read by the kernel straight from their blobs, where it can.
    pub passthrough: bool,
    /// Whether every volume is read into the page cache once it is complete.
    pub warm_up: bool,
    /// Tensors in memory that processes share.
    pub handoff: HandoffConfig,
    /// Memory that stays available beside what is warmed up; `None` for a tenth of all there is, at least 1 GiB.
    pub warm_up_floor_bytes: Option<u64>,
}

impl Config {
    /// What the FUSE mount is called in the mount table: it tells one agent's volumes from another's.
    pub(crate) fn source(&self) -> String {
        format!("weightd:{}", self.directory.display())
    }

    /// The defaults, with the FUSE mount at a directory.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        let directory = directory.into();
        let beside = directory.parent().unwrap_or(Path::new("/")).to_owned();
        Self {
            directory,
            handoff: HandoffConfig::new(beside),
            keeper: None,
            read_timeout: Duration::from_secs(120),
            agent_timeout: Duration::from_secs(300),
            threads: 4,
            read_ahead_bytes: 4 << 20,
            buffer_bytes: 128 << 20,
            passthrough: true,
            warm_up: false,
            warm_up_floor_bytes: None,
        }
    }
}
