//! Where clients come: the node's socket, and one for each snapshot that volumes show.

use std::{
    collections::{HashMap, hash_map::Entry},
    fs,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustix::{
    fs::CWD,
    mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree},
};
use tokio::{runtime::Handle, time::sleep};
use tokio_util::sync::CancellationToken;
use weightd_proto::v1::{FailureKind, HandoffAnswer, handoff_answer::Answer};
use weightd_types::{RESERVED_NAME, SnapshotKey};

use super::{
    Inner,
    counted::Counted,
    memory::Provider,
    model::Scope,
    packets::{PacketListener, listen_at},
    refusal::Refusal,
    serve::serve,
};
use crate::{ExposeError, bind::detach, mount_table, sys};

/// The node's socket.
const NODE: &str = "handoff.sock";
/// What a snapshot's socket is called with the keeper, before its key.
const KEPT: &str = "handoff-socket/";
/// Who may connect to a snapshot's socket: whoever gets there, which is who has a volume of it.
const EVERYONE: u32 = 0o666;
const ROOT: u32 = 0o600;
/// Of all leases, one socket's clients may have so many.
const SHARE: usize = 4;
/// After an error of the system, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// Where clients come.
#[derive(Debug)]
pub(crate) struct Sockets {
    directory: PathBuf,
    provider: Provider,
    inner: Weak<Inner>,
    runtime: Handle,
    /// Snapshots that are listened for; cancelled, they are not.
    listening: Mutex<HashMap<SnapshotKey, CancellationToken>>,
    /// How many there are, and how many there may be. One socket's clients leave room for those of others.
    leases: Arc<AtomicUsize>,
    most_leases: usize,
    /// Whether the node's socket was made.
    has_begun: AtomicBool,
    ended: CancellationToken,
}

impl Sockets {
    /// Needs a tokio runtime.
    pub(crate) fn new(
        directory: PathBuf,
        provider: Provider,
        most_leases: usize,
        inner: Weak<Inner>,
    ) -> Self {
        let (listening, leases, ended) = (Mutex::default(), Arc::default(), CancellationToken::new());
        let (runtime, has_begun) = (Handle::current(), AtomicBool::new(false));
        Self { directory, provider, inner, runtime, listening, leases, most_leases, has_begun, ended }
    }

    fn listening(&self) -> MutexGuard<'_, HashMap<SnapshotKey, CancellationToken>> {
        self.listening.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens on the node's socket, and goes on with those that an earlier agent left with the keeper.
    pub(crate) async fn begin(self: &Arc<Self>) -> Result<(), ExposeError> {
        let this = Arc::clone(self);
        let begun = tokio::task::spawn_blocking(move || {
            let _entered = this.runtime.enter();
            this.begin_now()
        });
        begun.await.unwrap_or(Ok(()))
    }

    fn begin_now(self: &Arc<Self>) -> Result<(), ExposeError> {
        if !self.has_begun.swap(true, Ordering::AcqRel) {
            let path = self.directory.join(NODE);
            match listen_at(&path, ROOT).map_err(ExposeError::mount("listen at", &path)) {
                Ok(socket) => self.listen(socket, Scope::Node, self.ended.clone())?,
                Err(error) => tracing::warn!(%error, "tensors are handed out to volumes only"),
            }
        }
        let kept = self.provider.with_keeper(|keeper| {
            let mut kept = Vec::new();
            for name in keeper.list(KEPT)? {
                let key = name.strip_prefix(KEPT).and_then(|key| key.parse::<SnapshotKey>().ok());
                let socket = keeper.attend_to(&name)?.and_then(|mut found| found.pop());
                kept.extend(key.zip(socket));
            }
            Ok(kept)
        });
        for (key, socket) in kept?.unwrap_or_default() {
            let token = self.ended.child_token();
            if let Entry::Vacant(vacant) = self.listening().entry(key) {
                self.listen(socket, Scope::Snapshot(key), token.clone())?;
                vacant.insert(token);
            }
        }
        Ok(())
    }

    /// Has a volume of a snapshot reach it by the socket in it. Blocks. A volume that has it already stays as it is.
    pub(crate) fn attach(self: &Arc<Self>, key: SnapshotKey, target: &Path) -> Result<(), ExposeError> {
        let at = target.join(RESERVED_NAME);
        let mounts = mount_table::read().map_err(ExposeError::mount("read the mount table for", target))?;
        let path = self.ensure(key)?;
        if mount_table::at(&mounts, &at).is_some() {
            if is_same(&at, &path) {
                return Ok(());
            }
            // One that nobody listens at any more: an agent without a keeper left it.
            detach(&at)?;
        }
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree =
            open_tree(CWD, &path, flags).map_err(|error| ExposeError::mount("clone", &path)(error.into()))?;
        // As the volume: nobody in a pod changes who may connect.
        sys::make_read_only(tree.as_fd()).map_err(ExposeError::mount("make read-only", &path))?;
        move_mount(&tree, "", CWD, &at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(|error| ExposeError::mount("attach the hand-off socket at", &at)(error.into()))
    }

    /// Short, because socket paths are.
    fn path(&self, key: &SnapshotKey) -> PathBuf {
        let id = key.id.to_string();
        self.directory.join("sockets").join(format!("{}.{}", &id[..20], key.layout))
    }

    /// Path of a snapshot's socket, which is listened on.
    fn ensure(self: &Arc<Self>, key: SnapshotKey) -> Result<PathBuf, ExposeError> {
        let path = self.path(&key);
        let mut listening = self.listening();
        if listening.contains_key(&key) && path.exists() {
            return Ok(path);
        }
        let failed = ExposeError::mount("listen at", &path);
        let socket = listen_in(&path).map_err(failed)?;
        // Volumes outlive agents, and the next one has to hear from them by the same socket.
        self.provider.with_keeper(|keeper| keeper.put_plain(&format!("{KEPT}{key}"), &[socket.as_fd()]))?;
        let token = self.ended.child_token();
        if let Some(old) = listening.insert(key, token.clone()) {
            old.cancel();
        }
        self.listen(socket, Scope::Snapshot(key), token)?;
        Ok(path)
    }

    /// Listens for these snapshots and no others.
    pub(crate) fn keep_only(self: &Arc<Self>, is_shown: impl Fn(&SnapshotKey) -> bool) {
        let mut gone = Vec::new();
        self.listening().retain(|key, token| {
            let stays = is_shown(key);
            if !stays {
                token.cancel();
                gone.push(*key);
            }
            stays
        });
        if gone.is_empty() {
            return;
        }
        for key in &gone {
            let _ = fs::remove_file(self.path(key));
        }
        let drop_all = |keeper: &crate::keeper::Keeper| {
            gone.iter().try_for_each(|key| keeper.drop_name(&format!("{KEPT}{key}")))
        };
        if let Err(error) = self.provider.with_keeper(drop_all) {
            tracing::debug!(%error, "the keeper still has sockets of volumes that are gone");
        }
    }

    fn listen(
        self: &Arc<Self>,
        socket: OwnedFd,
        scope: Scope,
        token: CancellationToken,
    ) -> Result<(), ExposeError> {
        let _entered = self.runtime.enter();
        let listener =
            PacketListener::new(socket).map_err(ExposeError::mount("listen in", &self.directory))?;
        let this = Arc::downgrade(self);
        self.runtime.spawn(async move {
            tokio::select! {
                () = token.cancelled() => {}
                () = accept_all(this, listener, scope) => {}
            }
        });
        Ok(())
    }

    /// Takes no more clients, and ends the leases there are.
    pub(crate) fn end(&self) {
        self.ended.cancel();
        let _ = fs::remove_file(self.directory.join(NODE));
    }
}

async fn accept_all(this: Weak<Sockets>, listener: PacketListener, scope: Scope) {
    let own_leases = Arc::default();
    loop {
        let accepted = listener.accept().await;
        let Some(this) = this.upgrade() else { return };
        match accepted {
            Ok((packets, who)) => {
                let Some(inner) = this.inner.upgrade() else { return };
                let (ended, most) = (this.ended.clone(), this.most_leases);
                let own_most = most.div_ceil(SHARE);
                let (all, own) = (Counted::one_more(&this.leases), Counted::one_more(&own_leases));
                tokio::spawn(async move {
                    let (all, own) = (all, own);
                    if all.number > most || own.number > own_most {
                        let message = format!(
                            "there are {own_most} leases of this volume, or {most} of this node: handoff.leases"
                        );
                        let refusal = Refusal::new(FailureKind::TryAgain, message).into_message();
                        let answer = HandoffAnswer { answer: Some(Answer::Failed(refusal)) };
                        let _ = tokio::time::timeout(PAUSE, packets.send(&answer, &[])).await;
                        return;
                    }
                    tokio::select! {
                        () = ended.cancelled() => {}
                        () = serve(inner, packets, who, scope) => {}
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a client could not connect");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Whether two paths lead to one file.
fn is_same(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()));
    identity(one).is_some_and(|found| identity(other) == Some(found))
}

/// Listens at a path in a directory that only root gets into: from elsewhere the socket is reached where it is mounted.
fn listen_in(path: &Path) -> std::io::Result<OwnedFd> {
    use std::os::unix::fs::DirBuilderExt;
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    listen_at(path, EVERYONE)
}
