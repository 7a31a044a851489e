//! What the mount table says of volumes, and what follows from it.

use std::{
    path::{Component, Path, PathBuf},
    sync::{Arc, PoisonError},
};

use weightd_types::{RESERVED_NAME, SnapshotKey};

use super::{Inner, Serving, Volume, lock};
use crate::{
    ExposeError,
    mount_table::{self, Mount},
    shown::Shown,
};

impl Inner {
    pub(super) fn mounts(&self) -> Result<Vec<Mount>, ExposeError> {
        mount_table::read().map_err(ExposeError::mount("read the mount table for", &self.config.directory))
    }

    /// What the mount table says is shown where.
    pub(super) fn volumes_in(&self, mounts: &[Mount]) -> Vec<Volume> {
        // The store's own, and those of read-only tiers, each on a file system of its own.
        let directories = self.store.snapshots_directories();
        let within = |snapshots: &PathBuf| {
            let mount = mount_table::containing(mounts, snapshots)?;
            Some((&mount.device, mount.root.join(snapshots.strip_prefix(&mount.target).ok()?)))
        };
        let homes: Vec<_> = directories.iter().filter_map(within).collect();
        let sockets = self.config.handoff.directory.canonicalize();
        let sockets = sockets.ok().and_then(|directory| within(&directory));
        // Several agents may have one tier: a volume of it is whose socket is in it, and nobody else's.
        let is_anothers = |mount: &Mount| {
            let socket = mount_table::at(mounts, &mount.target.join(RESERVED_NAME));
            let (Some(socket), Some((device, within))) = (socket, &sockets) else { return false };
            socket.device != **device || !socket.root.starts_with(within)
        };
        let source = self.config.source();
        let volume = |mount: &Mount| {
            let is_fuse = mount.kind == "fuse" && mount.source == source;
            let below = |(device, within): &(&String, PathBuf)| {
                (mount.device == **device).then(|| mount.root.strip_prefix(within).ok()).flatten()
            };
            let root = match is_fuse {
                true => mount.root.strip_prefix("/").ok()?,
                false => {
                    let found = homes.iter().position(|home| below(home).is_some())?;
                    if found > 0 && is_anothers(mount) {
                        return None;
                    }
                    below(&homes[found])?
                }
            };
            let snapshot: SnapshotKey = root.components().next()?.as_os_str().to_str()?.parse().ok()?;
            let serving = match is_fuse {
                false => Serving::Bind,
                true if self.shared.passes_through() => Serving::Passthrough,
                true => Serving::Fuse,
            };
            Some(Volume { target: mount.target.clone(), snapshot, serving })
        };
        mount_table::visible(mounts).filter_map(volume).collect()
    }

    /// Looks at the mount table, and holds in the store what is mounted, no more and no less.
    pub(super) fn refresh(&self) -> Result<Vec<Volume>, ExposeError> {
        let volumes = self.volumes_in(&self.mounts()?);
        let mut held = lock(&self.held);
        held.retain(|target, hold| {
            volumes.iter().any(|volume| volume.target == *target && volume.snapshot == hold.key())
        });
        for volume in &volumes {
            if !held.contains_key(&volume.target) {
                match self.store.hold(volume.snapshot) {
                    Ok(hold) => drop(held.insert(volume.target.clone(), hold)),
                    Err(error) => {
                        tracing::warn!(target = %volume.target.display(), %error, "a volume shows what the store does not know");
                    }
                }
            }
        }
        self.warm_up.keep_only(|key| held.values().any(|hold| hold.key() == *key));
        drop(held);
        self.metrics.volumes.set(i64::try_from(volumes.len()).unwrap_or(i64::MAX));
        self.hide_unseen(&volumes);
        self.handoff.keep_only(|key| volumes.iter().any(|volume| volume.snapshot == *key));
        Ok(volumes)
    }

    /// Forgets snapshots of the file system that no volume shows and nobody uses.
    pub(super) fn hide_unseen(&self, volumes: &[Volume]) {
        let is_seen = |key: &SnapshotKey| {
            volumes.iter().any(|volume| volume.serving != Serving::Bind && volume.snapshot == *key)
        };
        let session = lock(&self.session).clone();
        let unseen: Vec<Arc<Shown>> = {
            let shown = self.shared.shown.read().unwrap_or_else(PoisonError::into_inner);
            shown.values().filter(|shown| !is_seen(&shown.key())).cloned().collect()
        };
        for shown in unseen {
            if session.as_ref().is_some_and(|session| session.is_used_without_names(&shown)) {
                continue;
            }
            self.shared.shown.write().unwrap_or_else(PoisonError::into_inner).remove(&shown.tree.family);
            for entry in &shown.tree.manifest.objects {
                self.shared.reader.forget(&entry.blob);
            }
        }
        if let Some(session) = session {
            session.keep_only(|family| self.shared.find(family).is_some());
        }
    }

    /// What is mounted at a target: nothing, the snapshot, or something else.
    pub(super) fn is_there(&self, key: SnapshotKey, target: &Path) -> Result<Option<Volume>, ExposeError> {
        let mounts = self.mounts()?;
        let Some(mount) = mount_table::at(&mounts, target) else { return Ok(None) };
        let volume = self.volumes_in(&mounts).into_iter().find(|volume| volume.target == target);
        match volume {
            Some(volume) if volume.snapshot == key => Ok(Some(volume)),
            Some(volume) => Err(occupied(target, format!("snapshot {}", volume.snapshot))),
            None => Err(occupied(target, format!("a mount of {}", mount.source))),
        }
    }

    pub(super) fn check_target(&self, target: &Path) -> Result<(), ExposeError> {
        let bad = |why| Err(ExposeError::BadTarget { path: target.to_owned(), why });
        if target.starts_with(self.store.config().directory.as_path()) {
            return bad("it lies in the store");
        }
        if target.starts_with(&self.config.directory) {
            return bad("it lies where weightd mounts its own file system");
        }
        match std::fs::symlink_metadata(target) {
            Ok(found) if found.is_symlink() => bad("it is a symbolic link"),
            Ok(found) if !found.is_dir() => bad("it is a file"),
            _ => Ok(()),
        }
    }
}

/// Follows links in the directories above a target, as far as there are any.
pub(super) fn resolve_target(target: &Path) -> Result<PathBuf, ExposeError> {
    let is_plain = target.components().all(|part| !matches!(part, Component::ParentDir));
    let (true, true, Some(name)) = (target.is_absolute(), is_plain, target.file_name()) else {
        let why = "a target is an absolute path without .., and not the root";
        return Err(ExposeError::BadTarget { path: target.to_owned(), why });
    };
    let above = target.parent().unwrap_or(Path::new("/"));
    let resolved = above.ancestors().find_map(|there| {
        let rest = above.strip_prefix(there).expect("it is one of its ancestors");
        Some(there.canonicalize().ok()?.join(rest))
    });
    Ok(resolved.unwrap_or_else(|| above.to_owned()).join(name))
}

pub(super) fn occupied(target: &Path, found: String) -> ExposeError {
    ExposeError::Occupied { path: target.to_owned(), found }
}
