//! What benchmarks measure beside weightd. Where one cannot be had, its rows are left out.

use std::{path::Path, process::Command};

use anyhow::{Result, ensure};

use crate::{
    command::{self, find},
    tools,
};

/// Cloud Storage FUSE, at the version that docs/benchmarks names.
const GCSFUSE: &str = "github.com/googlecloudplatform/gcsfuse/v3@v3.11.4";

/// Installs all that are missing.
pub(crate) fn install(root: &Path) {
    tools::peer();
    if let Err(error) = gcsfuse(root) {
        eprintln!("warning: {error:#}; volumes are not measured beside gcsfuse");
    }
}

/// Built by Go into the checkout's `.tools`.
fn gcsfuse(root: &Path) -> Result<()> {
    let directory = root.join(".tools/go/bin");
    if directory.join("gcsfuse").exists() {
        return Ok(());
    }
    ensure!(find("go").is_some(), "gcsfuse is built by Go 1.26 or later, which is not here");
    println!("Building gcsfuse into .tools ...");
    command::run(Command::new("go").args(["install", GCSFUSE]).env("GOBIN", directory))
}
