//! What an operator decides about tiers.

use std::path::PathBuf;

/// Where GKE mounts secondary boot disks.
const GKE_DISKS: &str = "/mnt/disks/gke-secondary-disks/*";

/// What an operator decides about tiers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TierConfig {
    /// Directories that may be tiers: absolute, `*`, `?` and `[...]` match within a name.
    pub patterns: Vec<String>,
    /// Whether the origin of a snapshot that a tier has whole is asked what its source is now, and whether a pod may read it.
    /// Otherwise the tier answers for it: every pod of the node may read what the operator put on the node.
    pub ask_origin: bool,
}

impl Default for TierConfig {
    fn default() -> Self {
        Self { patterns: vec![GKE_DISKS.to_owned()], ask_origin: true }
    }
}

impl TierConfig {
    /// Directories that are there now.
    pub(crate) fn directories(&self) -> Vec<PathBuf> {
        super::expand(&self.patterns)
    }

    /// Whether a pattern can be looked for.
    pub(crate) fn check(pattern: &str) -> Result<String, String> {
        if !pattern.starts_with('/') {
            return Err(format!("write absolute paths: {pattern:?} is none"));
        }
        glob::Pattern::new(pattern).map(|_| pattern.to_owned()).map_err(|error| error.to_string())
    }
}
