//! `cargo xtask lint`: everything that is checked without running the code. All checks are made before it fails.

mod dependencies;
mod length;

use std::path::Path;

use anyhow::{Result, ensure};

use crate::{command, protocols, tools};

/// A check: an error says what is wrong.
type Check = fn(&Path) -> Result<()>;

/// Runs every check, and names those that failed.
pub(crate) fn run(root: &Path) -> Result<()> {
    let checks: [(&str, Check); 5] = [
        ("format", format),
        ("clippy", clippy),
        ("dependencies", dependencies::check),
        ("generated code", |root| protocols::run(root, &["--check".to_owned()])),
        ("length of files", length::check),
    ];
    let mut failed = Vec::new();
    for (name, check) in checks {
        println!("lint: {name}");
        if let Err(error) = check(root) {
            eprintln!("error: {name}: {error:#}");
            failed.push(name);
        }
    }
    ensure!(failed.is_empty(), "these checks failed: {}", failed.join(", "));
    Ok(())
}

fn format(root: &Path) -> Result<()> {
    command::run(command::cargo(root).args(["fmt", "--all", "--check"]))
}

fn clippy(root: &Path) -> Result<()> {
    tools::libraries();
    let clippy = ["clippy", "--quiet", "--workspace", "--all-targets", "--features", "xtask/generate"];
    command::run(command::cargo(root).args(clippy).args(["--", "-D", "warnings"]))
}
