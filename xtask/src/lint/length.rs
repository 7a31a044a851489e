//! Files that have grown too long to be read.

use std::{fs, path::Path, process::Command};

use anyhow::{Result, ensure};

use crate::command;

/// Most lines a Rust file may have; most should have a quarter of it.
const LINES: usize = 600;

/// Looks at every Rust file that git tracks, or would, but for generated ones.
pub(super) fn check(root: &Path) -> Result<()> {
    let list = ["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"];
    let files = command::output(Command::new("git").args(list).current_dir(root))?;
    let too_long: Vec<String> = files
        .lines()
        .filter(|file| !file.contains("/generated/"))
        .filter_map(|file| {
            // Deleted, but still in git's index.
            let lines = fs::read_to_string(root.join(file)).ok()?.lines().count();
            (lines > LINES).then(|| format!("{file} ({lines})"))
        })
        .collect();
    ensure!(too_long.is_empty(), "more than {LINES} lines, so divide: {}", too_long.join(", "));
    Ok(())
}
