//! `cargo xtask bench NAME`: one benchmark, optimised, beside its peers.

use std::{path::Path, process::Command};

use anyhow::{Context, Result};

use crate::{command, peers, tools};

/// Builds the benchmarks and what they measure, and runs the one that is named (`prefetch` if none is).
pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    let (name, rest) = match arguments.split_first() {
        Some((name, rest)) if !name.starts_with('-') => (name.as_str(), rest),
        _ => ("prefetch", arguments),
    };
    tools::libraries();
    tools::python(root)?;
    match name {
        "handoff" => peers::install_for_handoff(root)?,
        "compare" => {
            peers::install(root);
            peers::install_for_handoff(root)?;
            tools::cluster();
        }
        _ => peers::install(root),
    }
    // Of libraries it is the module for Python that is wanted.
    let build = ["build", "--release", "--workspace", "--bins", "--lib"];
    command::run(command::cargo(root).args(build))?;
    let program = root.join("target/release").join(name);
    let program = program.canonicalize().with_context(|| format!("no benchmark is called {name}"))?;
    command::run(Command::new(program).args(rest).current_dir(root))
}
