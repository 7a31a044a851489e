//! What benchmarks measure beside weightd. Where one cannot be had, its rows are left out.

use std::path::Path;

use anyhow::Result;

use crate::tools;

/// Cloud Storage FUSE, at the version that docs/benchmarks names.
const GCSFUSE: &str = "github.com/googlecloudplatform/gcsfuse/v3@v3.11.4";

/// Installs what prefetches and volumes are measured beside.
pub(crate) fn install(root: &Path) {
    tools::peer();
    if let Err(error) = tools::go(root, GCSFUSE) {
        eprintln!("warning: {error:#}; volumes are not measured beside gcsfuse");
    }
}

/// Installs what hand-off is measured with, and beside.
pub(crate) fn install_for_handoff(root: &Path) -> Result<()> {
    // torch is what tensors are handed to: without it there is nothing to measure.
    tools::vllm(root)?;
    if let Err(error) = tools::handoff_peers(root) {
        eprintln!("warning: {error:#}; hand-off is NOT measured beside runai-model-streamer");
    }
    Ok(())
}
