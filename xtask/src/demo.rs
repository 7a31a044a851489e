//! `cargo xtask demo`: the main job with nothing to configure. `tests/harness` holds the demonstration itself.

use std::{env, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::{command, tools};

/// Builds what it takes and runs it.
pub(crate) fn run(root: &Path) -> Result<()> {
    tools::libraries();
    tools::python(root)?;
    println!("Building weightctl (the first time takes a few minutes) ...");
    // Of the whole workspace, so that what it shares with the tests is compiled once.
    let programs = ["build", "--workspace", "--bin", "weightctl", "--bin", "weightd-demo"];
    command::run(command::cargo(root).args(programs))?;
    // Cargo puts them where it put this program.
    let here = env::current_exe().context("Linux knows a program's path")?;
    command::run(&mut Command::new(here.with_file_name("weightd-demo")))
}
