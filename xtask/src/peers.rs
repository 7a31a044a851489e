//! What benchmarks measure beside weightd. Where one cannot be had, its rows are left out.

use std::path::Path;

use crate::tools;

/// Cloud Storage FUSE, at the version that docs/benchmarks names.
const GCSFUSE: &str = "github.com/googlecloudplatform/gcsfuse/v3@v3.11.4";

/// Installs all that are missing.
pub(crate) fn install(root: &Path) {
    tools::peer();
    if let Err(error) = tools::go(root, GCSFUSE) {
        eprintln!("warning: {error:#}; volumes are not measured beside gcsfuse");
    }
}
