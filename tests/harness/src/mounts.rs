//! What tests mounted, found and taken away.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Where something is mounted at or below a directory, the deepest and latest first.
pub fn below(directory: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let targets = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut below: Vec<_> = targets.filter(|target| target.starts_with(directory)).collect();
    below.reverse();
    below
}

/// As [`below`], without the hand-off sockets that are mounted in volumes.
pub fn volumes_below(directory: &Path) -> Vec<PathBuf> {
    let is_socket = |target: &PathBuf| target.file_name().is_some_and(|name| name == ".weightd.sock");
    below(directory).into_iter().filter(|target| !is_socket(target)).collect()
}

/// Takes everything away that is mounted at or below a directory, busy or not.
pub fn remove_below(directory: &Path) {
    for target in below(directory) {
        // One that went by itself meanwhile is no matter.
        let _ = Command::new("umount").arg("--lazy").arg(target).stderr(Stdio::null()).status();
    }
}
