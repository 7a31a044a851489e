//! `cargo xtask cluster COMMAND`: a real Kubernetes by hand. `tests/harness/src/cluster` holds it.

use std::{env, os::unix::process::CommandExt, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::{command, tools};

/// Builds the program that does it, and becomes it.
pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    if arguments.first().is_some_and(|first| first == "up") {
        tools::cluster();
    }
    // Of the whole workspace, so that what it shares with the tests is compiled once.
    command::run(command::cargo(root).args(["build", "--quiet", "--workspace", "--bin", "test-kubernetes"]))?;
    let here = env::current_exe().context("Linux knows a program's path")?;
    Err(Command::new(here.with_file_name("test-kubernetes")).args(arguments).exec().into())
}
