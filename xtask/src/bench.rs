//! `cargo xtask bench`: the benchmarks, optimised.

use std::path::Path;

use anyhow::Result;

use crate::{command, tools};

/// Runs them with these arguments.
pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    tools::python(root)?;
    command::run(command::cargo(root).args(["build", "--release", "-p", "weightd", "-p", "weightctl"]))?;
    command::run(
        command::cargo(root).args(["run", "--release", "-p", "weightd-benches", "--"]).args(arguments),
    )
}
