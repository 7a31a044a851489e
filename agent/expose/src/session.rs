//! The FUSE session of this process: begun, joined to its keeper, and ended.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    thread::JoinHandle,
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use fuser::{INodeNo, Notifier};
use weightd_types::SnapshotKey;

use crate::{
    Config, ExposeError,
    bind::detach,
    fuse::{
        Connection, Family, Node, OpenThrough, Passthrough, Registered, Saved, Shared, VolumesFilesystem,
    },
    keeper::Keeper,
    mount_table,
    shown::Shown,
};

/// How often the keeper is looked for.
const LOOK: Duration = Duration::from_secs(1);

/// A session that serves the FUSE mount.
#[derive(Debug)]
pub(crate) struct FuseSession {
    config: Config,
    notifier: Notifier,
    backing: Arc<Backing>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

/// What the keeper keeps, and who it is.
#[derive(Debug)]
struct Backing {
    device: Arc<OwnedFd>,
    init: String,
    passthrough: Passthrough,
    keeper: Mutex<Option<Keeper>>,
}

impl Backing {
    /// Leaves what is to be known of the connection with the keeper, if there is one.
    fn save(&self, registered: &Registered) -> Result<(), ExposeError> {
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(keeper) = keeper.as_ref() else { return Ok(()) };
        let saved = Saved { init: self.init.clone(), registered: registered.clone() };
        keeper.put(self.device.as_fd(), &saved)
    }
}

impl Backing {
    /// Gives up the registrations of a snapshot that is no longer shown.
    fn forget(&self, family: Family) {
        let saved = self.passthrough.forget(family).map_or(Ok(()), |left| self.save(&left));
        if let Err(error) = saved {
            tracing::warn!(%error, "the keeper was not told of files that are closed");
        }
    }

    /// Goes to the keeper that has taken the place of one that is gone. One that does not take what it is given is not
    /// gone to, so that the next look tries again.
    fn look_for_keeper(&self, path: &Path, grace: Duration) {
        let is_gone = |keeper: &Option<Keeper>| keeper.as_ref().is_none_or(Keeper::is_gone);
        if !is_gone(&self.keeper.lock().unwrap_or_else(PoisonError::into_inner)) {
            return;
        }
        let Ok(keeper) = Keeper::connect(path, grace) else { return };
        // Nothing is registered meanwhile: neither keeper would hear of it.
        let given = self.passthrough.with(|registered| {
            let saved = Saved { init: self.init.clone(), registered: registered.clone() };
            keeper.put(self.device.as_fd(), &saved)?;
            *self.keeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(keeper);
            Ok::<(), ExposeError>(())
        });
        match given {
            Ok(()) => tracing::info!("another keeper has the volumes"),
            Err(error) => tracing::warn!(%error, "the new keeper does not have the volumes"),
        }
    }
}

impl OpenThrough for Backing {
    fn register(&self, node: Node, blob: PathBuf) -> io::Result<u32> {
        // A keeper that is gone for the moment is no reason to fail an open: the next one is given everything.
        let save = |registered: &Registered| {
            if let Err(error) = self.save(registered) {
                tracing::warn!(%error, "the keeper does not know of a file that is open");
            }
        };
        self.passthrough.register(node, &blob, save)
    }
}

impl FuseSession {
    /// Takes over what an earlier agent left with the keeper, if there is anything.
    pub(crate) fn adopt(config: &Config, shared: &Arc<Shared>) -> Result<Option<Self>, ExposeError> {
        let Some(path) = &config.keeper else { return Ok(None) };
        let keeper = Keeper::connect(path, config.agent_timeout)?;
        let Some((device, saved)) = keeper.attend()? else { return Ok(None) };
        let is_mounted = mount_table::read()
            .map_err(ExposeError::mount("read the mount table for", &config.directory))
            .map(|mounts| is_ours(&mounts, config))?;
        if !is_mounted {
            // Someone unmounted it while no agent ran. The connection is of no use.
            keeper.drop_connection()?;
            return Ok(None);
        }
        let init = BASE64_STANDARD.decode(&saved.init).map_err(|error| ExposeError::NoFuse {
            why: format!("the keeper kept a bad request: {error}"),
        })?;
        tracing::info!(directory = %config.directory.display(), "taking over the volumes of an earlier agent");
        let connection = Connection::adopt(device, init);
        Self::serve(config, shared, connection, Some(keeper), &saved.registered).map(Some)
    }

    /// Mounts a file system, after removing one that an agent without keeper left.
    pub(crate) fn mount(config: &Config, shared: &Arc<Shared>) -> Result<Self, ExposeError> {
        let directory = &config.directory;
        let mounts =
            mount_table::read().map_err(ExposeError::mount("read the mount table for", directory))?;
        if is_ours(&mounts, config) {
            tracing::warn!(directory = %directory.display(), "removing volumes that lost their agent");
            detach(directory)?;
        }
        let keeper = match &config.keeper {
            Some(path) => Some(Keeper::connect(path, config.agent_timeout)?),
            None => None,
        };
        let connection = Connection::mount(directory, &config.source())?;
        let session = Self::serve(config, shared, connection, keeper, &Registered::new())?;
        // Only now: the kernel's own default comes with the end of the handshake.
        read_ahead(directory, config.read_ahead_bytes);
        Ok(session)
    }

    fn serve(
        config: &Config,
        shared: &Arc<Shared>,
        connection: Connection,
        keeper: Option<Keeper>,
        registered: &Registered,
    ) -> Result<Self, ExposeError> {
        let device = Arc::clone(connection.device());
        let backing = Arc::new(Backing {
            init: BASE64_STANDARD.encode(connection.init()),
            passthrough: Passthrough::new(Arc::clone(&device), registered.clone()),
            keeper: Mutex::new(keeper),
            device,
        });
        backing.save(registered)?;
        let can_pass = connection.can_pass_through();
        if config.passthrough && can_pass {
            shared.open_through(Arc::clone(&backing) as Arc<dyn OpenThrough>);
        } else {
            tracing::info!(
                kernel = can_pass,
                "complete files of volumes that loaded are read through the agent"
            );
        }
        let filesystem = VolumesFilesystem::new(Arc::clone(shared), tokio::runtime::Handle::current());
        let session = connection.serve(filesystem, config.threads)?;
        let notifier = session.notifier();
        let failed = |error: io::Error| ExposeError::NoFuse { why: format!("no thread: {error}") };
        let thread = std::thread::Builder::new().name("weightd-fuse".to_owned());
        let thread = thread.spawn(move || session.run()).map_err(failed)?;
        let session = Self { config: config.clone(), notifier, backing, thread: Some(thread) };
        // The kernel asks for times of creation until it hears that there are none. Whoever looks at a file for the
        // first time shall not have to wait for an agent.
        let _ = std::fs::metadata(&config.directory);
        session.stay_with_keeper();
        Ok(session)
    }

    /// Finds the keeper again when another has taken its place.
    fn stay_with_keeper(&self) {
        let Some(path) = self.config.keeper.clone() else { return };
        let (backing, grace) = (Arc::downgrade(&self.backing), self.config.agent_timeout);
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(LOOK);
            loop {
                ticks.tick().await;
                let (Some(backing), path) = (backing.upgrade(), path.clone()) else { return };
                // It cannot panic; an agent that ends takes it along.
                let _ = tokio::task::spawn_blocking(move || backing.look_for_keeper(&path, grace)).await;
            }
        });
    }

    /// Has the kernel forget what it was given of a file.
    pub(crate) fn discarded(&self, shown: &Shown, position: usize) {
        let index = u32::try_from(position + 1).expect("the tree has fewer nodes");
        let number = Node { family: shown.tree.family, index, through: false }.number();
        if let Err(error) = self.notifier.inval_inode(number, 0, -1) {
            tracing::warn!(%error, url = shown.url(position), "the kernel keeps wrong bytes");
        }
    }

    /// Has the kernel forget a snapshot that is no longer shown.
    pub(crate) fn hidden(&self, key: &SnapshotKey) {
        let family = Family::of(key);
        self.backing.forget(family);
        // One that nobody looked up is not known.
        let _ = self.notifier.inval_entry(INodeNo::ROOT, key.to_string().as_ref());
    }

    /// The directory of a snapshot in the file system.
    pub(crate) fn directory(&self, key: &SnapshotKey) -> PathBuf {
        self.config.directory.join(key.to_string())
    }

    /// Ends serving. With a keeper the file system stays, for the next agent; without one it goes, cleanly.
    pub(crate) fn end(mut self, shared: &Shared) {
        if self.config.keeper.is_some() {
            shared.leaving.store(true, Ordering::Release);
            return;
        }
        if let Err(error) = detach(&self.config.directory) {
            tracing::warn!(%error, "the volumes stay mounted without anyone to serve them");
            return;
        }
        // The threads end when nobody has a file open any more, which nobody can be made to wait for.
        drop(self.thread.take());
    }
}

/// Whether a file system of ours is mounted at a directory.
fn is_ours(mounts: &[mount_table::Mount], config: &Config) -> bool {
    let mount = mount_table::at(mounts, &config.directory);
    mount.is_some_and(|mount| mount.kind == "fuse" && mount.source == config.source())
}

/// How far the kernel reads ahead. Its default suits a disk; here each request costs a switch to the agent and back.
fn read_ahead(directory: &Path, bytes: u64) {
    let outcome = mount_table::read().and_then(|mounts| {
        let mount = mount_table::at(&mounts, directory).ok_or(io::ErrorKind::NotFound)?;
        std::fs::write(format!("/sys/class/bdi/{}/read_ahead_kb", mount.device), (bytes >> 10).to_string())
    });
    if let Err(error) = outcome {
        tracing::warn!(%error, "reads of volumes that load stay small: the kernel's read-ahead could not be set");
    }
}

#[cfg(test)]
mod tests;
