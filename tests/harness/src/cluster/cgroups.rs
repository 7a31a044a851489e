//! The cgroups that nodes have their pods in, of whichever version the machine has.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::place::{CGROUP, node_name};

/// Where cgroups are.
const ROOT: &str = "/sys/fs/cgroup";

/// The name that kubelet is given for a node's.
pub(super) fn name(number: u8) -> String {
    format!("/{CGROUP}/{}", node_name(number))
}

/// Makes a node's, in every hierarchy.
pub(super) fn make(number: u8) -> Result<()> {
    for hierarchy in hierarchies() {
        let ours = hierarchy.join(CGROUP);
        for directory in [&ours, &ours.join(node_name(number))] {
            fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
            fill(directory);
        }
    }
    Ok(())
}

/// Removes all, once no process is in them.
pub(super) fn remove() {
    for hierarchy in hierarchies() {
        remove_tree(&hierarchy.join(CGROUP));
    }
}

/// Those that are there.
pub(super) fn left() -> Vec<PathBuf> {
    hierarchies().into_iter().map(|hierarchy| hierarchy.join(CGROUP)).filter(|path| path.exists()).collect()
}

/// All of version 2 is one hierarchy; version 1 has one for each controller, some of them under two names.
fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new(ROOT);
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_path_buf()];
    }
    let entries = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.join("cgroup.procs").exists()).collect()
}

/// What a new cgroup lacks: in version 1 its processors, in version 2 the controllers for those below.
fn fill(directory: &Path) {
    let above = directory.parent().unwrap_or(directory);
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if let Ok(value) = fs::read(above.join(file)) {
            // What the machine does not let us set, kubelet will complain of.
            let _ = fs::write(directory.join(file), value);
        }
    }
    if let Ok(controllers) = fs::read_to_string(above.join("cgroup.controllers")) {
        for controller in controllers.split_whitespace() {
            let _ = fs::write(above.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
}

/// The files in a cgroup cannot be removed; directories can, from the deepest on.
fn remove_tree(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    // One that is gone already, or was never made.
    let _ = fs::remove_dir(directory);
}
