//! What an operator decides about a store.

use std::{path::PathBuf, time::Duration};

use crate::io::EngineChoice;

/// What an operator decides about a store. Checked by the agent's configuration; see the fields for bounds.
#[derive(Debug, Clone)]
pub struct Config {
    /// The store's directory; made when missing.
    pub directory: PathBuf,
    /// Most bytes of weights to keep; `None` leaves only the floor of free space.
    pub quota_bytes: Option<u64>,
    /// Share of the quota above which eviction begins, at most 1.
    pub high_watermark: f64,
    /// Share of the quota down to which it evicts, at most the high watermark.
    pub low_watermark: f64,
    /// Share of the file system that stays free whatever happens, below 1. The default keeps kubelet, which
    /// evicts pods below 10 percent, out of it.
    pub floor: f64,
    /// Which engine writes.
    pub engine: EngineChoice,
    /// Memory for chunks on their way between network and disk. At least two chunks.
    pub buffer_bytes: u64,
    /// How long interrupted work is kept for a later run to resume.
    pub partials_keep: Duration,
    /// How much time's worth of written chunks a crash may cost.
    pub checkpoint_interval: Duration,
}

impl Config {
    /// The defaults, for a directory.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            quota_bytes: None,
            high_watermark: 0.95,
            low_watermark: 0.85,
            floor: 0.15,
            engine: EngineChoice::Auto,
            buffer_bytes: 256 << 20,
            partials_keep: Duration::from_hours(24),
            checkpoint_interval: Duration::from_secs(1),
        }
    }
}
