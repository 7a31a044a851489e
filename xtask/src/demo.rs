//! `cargo xtask demo`: the main job with nothing to configure. `tests/harness` holds the demonstration itself.

use std::path::Path;

use anyhow::Result;

use crate::{command, tools};

/// Builds what it takes and runs it.
pub(crate) fn run(root: &Path) -> Result<()> {
    tools::python(root)?;
    println!("Building weightctl (the first time takes a few minutes) ...");
    let demo = ["-p", "weightd-harness", "--bin", "weightd-demo"];
    command::run(command::cargo(root).args(["build", "-p", "weightctl", "--bin", "weightctl"]).args(demo))?;
    command::run(command::cargo(root).args(["run", "--quiet"]).args(demo))
}
