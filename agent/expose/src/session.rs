//! The FUSE session of this process: begun, joined to its keeper, and ended.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
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
        is_known,
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
    /// Leaves the registrations with the keeper. One that is gone for the moment is no reason to fail an open: the next one
    /// is given everything.
    fn save_or_warn(&self, registered: &Registered) {
        if let Err(error) = self.save(registered) {
            tracing::warn!(%error, "the keeper does not know which files the kernel reads itself");
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
        self.passthrough.register(node, &blob, |registered| self.save_or_warn(registered))
    }
}

/// What an earlier agent left with the keeper.
#[derive(Debug)]
pub(crate) struct Left {
    keeper: Keeper,
    connection: Connection,
    registered: Registered,
}

impl Left {
    /// Asks the keeper for it, where there is one.
    pub(crate) fn find(config: &Config) -> Result<Option<Self>, ExposeError> {
        let Some(path) = &config.keeper else { return Ok(None) };
        let keeper = Keeper::connect(path, config.agent_timeout)?;
        let Some((device, saved)) = keeper.attend()? else { return Ok(None) };
        let mounts =
            mount_table::read().map_err(ExposeError::mount("read the mount table for", &config.directory))?;
        if !mounts.iter().any(|mount| is_of(mount, config)) {
            // Someone unmounted it while no agent ran. The connection is of no use.
            keeper.drop_connection()?;
            return Ok(None);
        }
        let init = BASE64_STANDARD.decode(&saved.init).map_err(|error| ExposeError::NoFuse {
            why: format!("the keeper kept a bad request: {error}"),
        })?;
        let (connection, registered) = (Connection::adopt(device, init), saved.registered);
        Ok(Some(Self { keeper, connection, registered }))
    }

    /// Whether anyone still uses a snapshot, be it only an open file of a volume that was unmounted.
    pub(crate) fn is_used(&self, key: &SnapshotKey) -> bool {
        is_known(self.connection.device(), Node::directory(Family::of(key)).number())
    }

    /// Goes on where that agent stopped. What is shown must be shown by now: what was left unanswered is asked at once.
    pub(crate) fn serve(self, config: &Config, shared: &Arc<Shared>) -> Result<FuseSession, ExposeError> {
        tracing::info!(directory = %config.directory.display(), "taking over the volumes of an earlier agent");
        let Self { keeper, connection, registered } = self;
        let backing = FuseSession::back(&connection, Some(keeper), registered);
        backing.passthrough.close_unlisted();
        let is_shown = |family| shared.find(family).is_some();
        backing.passthrough.keep_only(is_shown, |left| backing.save_or_warn(left));
        FuseSession::serve(config, shared, connection, backing)
    }
}

impl FuseSession {
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
        let backing = Self::back(&connection, keeper, Registered::default());
        let session = Self::serve(config, shared, connection, backing)?;
        // Only now: the kernel's own default comes with the end of the handshake.
        read_ahead(directory, config.read_ahead_bytes);
        Ok(session)
    }

    fn back(connection: &Connection, keeper: Option<Keeper>, registered: Registered) -> Arc<Backing> {
        let device = Arc::clone(connection.device());
        Arc::new(Backing {
            init: BASE64_STANDARD.encode(connection.init()),
            passthrough: Passthrough::new(Arc::clone(&device), registered),
            keeper: Mutex::new(keeper),
            device,
        })
    }

    fn serve(
        config: &Config,
        shared: &Arc<Shared>,
        connection: Connection,
        backing: Arc<Backing>,
    ) -> Result<Self, ExposeError> {
        backing.passthrough.with(|registered| backing.save(registered))?;
        let can_pass = connection.can_pass_through();
        let through = (config.passthrough && can_pass).then(|| Arc::clone(&backing) as Arc<dyn OpenThrough>);
        shared.passes_through.store(through.is_some(), Ordering::Release);
        if through.is_none() {
            tracing::info!(
                kernel = can_pass,
                "complete files of volumes that loaded are read through the agent"
            );
        }
        let filesystem =
            VolumesFilesystem::new(Arc::clone(shared), tokio::runtime::Handle::current(), through);
        let session = connection.serve(filesystem, config.threads)?;
        let notifier = session.notifier();
        let failed = |error: io::Error| ExposeError::NoFuse { why: format!("no thread: {error}") };
        let thread = std::thread::Builder::new().name("weightd-fuse".to_owned());
        // Ends when nobody has a file open any more, which nobody can be made to wait for.
        drop(thread.spawn(move || session.run()).map_err(failed)?);
        let session = Self { config: config.clone(), notifier, backing };
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

    /// Has the kernel forget the names in a snapshot that no volume shows. Says whether anyone uses it all the same: a file
    /// may be open of a volume that was unmounted.
    pub(crate) fn is_used_without_names(&self, shown: &Shown) -> bool {
        let directory = |index| Node { index, ..Node::directory(shown.tree.family) }.number();
        let is_known = || is_known(&self.backing.device, directory(0));
        // Names that nobody looked up are not known.
        let _ = self.notifier.inval_entry(INodeNo::ROOT, shown.key().to_string().as_ref());
        if is_known() {
            // Those of files that were open at that time are still there, and out of the way of the one above.
            for (index, child) in shown.tree.names() {
                let _ = self.notifier.inval_entry(directory(index), child.name.as_ref());
            }
        }
        is_known()
    }

    /// Gives up what the kernel was given of snapshots that are not shown.
    pub(crate) fn keep_only(&self, is_shown: impl Fn(Family) -> bool) {
        self.backing.passthrough.keep_only(is_shown, |left| self.backing.save_or_warn(left));
    }

    /// Whether its file system is still mounted where it was; anyone may unmount it.
    pub(crate) fn is_mounted(&self) -> Result<bool, ExposeError> {
        let directory = &self.config.directory;
        let mounts =
            mount_table::read().map_err(ExposeError::mount("read the mount table for", directory))?;
        Ok(is_ours(&mounts, &self.config))
    }

    /// The directory of a snapshot in the file system.
    pub(crate) fn directory(&self, key: &SnapshotKey) -> PathBuf {
        self.config.directory.join(key.to_string())
    }

    /// Ends serving. With a keeper the file system stays, for the next agent; without one it goes, cleanly.
    pub(crate) fn end(&self, shared: &Shared) {
        if self.config.keeper.is_some() {
            shared.leaving.store(true, Ordering::Release);
            return;
        }
        if let Err(error) = detach(&self.config.directory) {
            tracing::warn!(%error, "the volumes stay mounted without anyone to serve them");
        }
    }
}

/// Whether the file system of ours is mounted where volumes are bound from.
fn is_ours(mounts: &[mount_table::Mount], config: &Config) -> bool {
    mount_table::at(mounts, &config.directory).is_some_and(|mount| is_of(mount, config))
}

/// Whether a mount is of the file system of ours.
fn is_of(mount: &mount_table::Mount, config: &Config) -> bool {
    mount.kind == "fuse" && mount.source == config.source()
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
