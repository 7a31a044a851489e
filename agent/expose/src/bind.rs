//! A directory shown somewhere else, read-only for everyone.

use std::{io, path::Path};

use rustix::{
    fs::CWD,
    mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount},
};
use std::os::fd::AsFd;

use crate::{ExposeError, sys};

/// Shows `from` at `target`, a directory that is made when it is missing.
///
/// The mount is cloned, made read-only while nobody sees it, and only then attached: a remount would change this mount
/// namespace alone, and leave copies that went to others writable.
pub(crate) fn bind_read_only(from: &Path, target: &Path) -> Result<(), ExposeError> {
    std::fs::create_dir_all(target)
        .map_err(ExposeError::mount("make a directory for the volume at", target))?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree =
        open_tree(CWD, from, flags).map_err(|error| ExposeError::mount("clone", from)(error.into()))?;
    sys::make_read_only(tree.as_fd()).map_err(ExposeError::mount("make read-only", from))?;
    move_mount(&tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|error| ExposeError::mount("attach the volume at", target)(error.into()))
}

/// Takes a mount away. One that is busy goes from the tree at once, and ends with its last user.
pub(crate) fn detach(target: &Path) -> Result<(), ExposeError> {
    let attempt = |flags| unmount(target, flags | UnmountFlags::NOFOLLOW).map_err(io::Error::from);
    let outcome = match attempt(UnmountFlags::empty()) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => attempt(UnmountFlags::DETACH),
        other => other,
    };
    outcome.map_err(ExposeError::mount("unmount", target))
}
