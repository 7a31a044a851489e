//! An engine for tests that loses whatever was not synced, as a power cut does.
//!
//! Operations happen at once on real files, so that everybody sees them; beside them the engine keeps what the disk
//! would still hold. [`PowerLossEngine::power_cut`] then makes the directory look as it might after power is back,
//! at the worst that POSIX allows rather than at what ext4 happens to do:
//! - a block written since the file's last sync has its new or its old bytes, each block for itself;
//! - a file's length is one it has had since its last sync;
//! - of the changes to names in a directory since its last sync, a first part survives, perhaps none; syncing a file
//!   does not keep its name, nor does syncing a directory keep the directory's own name.
//!
//! The seed decides, so a failure can be repeated. Nothing is really synced: tests lose no time on it.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use rustix::io::Errno;

use super::{Access, Buffer, IoEngine, IoFile, plain, transfer::Transfer};

mod backend;
mod contents;
#[cfg(test)]
mod index_tests;
mod names;
#[cfg(test)]
mod tests;

use contents::Contents;
use names::Names;

/// Loses what was not synced. For tests; transfers need a tokio runtime, whose blocking threads they run on.
#[derive(Clone)]
pub struct PowerLossEngine {
    state: Arc<Mutex<State>>,
}

/// What a power cut took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Losses {
    /// Blocks that have their old bytes again.
    pub blocks: usize,
    /// Changes to names that never happened.
    pub names: usize,
}

struct State {
    contents: Contents,
    names: Names,
    /// Set by a power cut; nothing works any more then.
    dead: bool,
    /// Operations that changed the disk, or tried to.
    operations: u64,
    /// After which operation to cut the power, and with which seed.
    planned: Option<(u64, u64)>,
    fault: Option<Fault>,
}

/// Writes work for this many bytes more, then fail.
struct Fault {
    left: u64,
    error: io::ErrorKind,
}

impl PowerLossEngine {
    /// An engine for what is under `root`, which is a directory and whose present state counts as synced. What
    /// is removed waits in a directory beside it, so `root` is best not a mount point.
    pub fn new(root: &Path) -> io::Result<Self> {
        let state = State {
            contents: Contents::default(),
            names: Names::new(&plain::temporary_name(&root.canonicalize()?)?)?,
            dead: false,
            operations: 0,
            planned: None,
            fault: None,
        };
        Ok(Self { state: Arc::new(Mutex::new(state)) })
    }

    /// Cuts the power now. All operations fail from here on; open the store with a new engine.
    pub fn power_cut(&self, seed: u64) -> io::Result<Losses> {
        self.alive()?.power_cut(seed)
    }

    /// Cuts the power once `operations` more operations that change the disk, syncs included, have been done. The
    /// last of them is done but reported as failed, as nobody lives to hear of it.
    pub fn cut_power_after(&self, operations: u64, seed: u64) {
        let mut state = self.state();
        state.planned = Some((state.operations + operations.max(1), seed));
    }

    /// How many operations that change the disk there have been: to choose moments for
    /// [`PowerLossEngine::cut_power_after`] from.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Whether the power is cut.
    pub fn is_cut(&self) -> bool {
        self.state().dead
    }

    /// Lets `bytes` more be written, to blobs, small files and the index alike, and fails the write that goes
    /// beyond, after what still fits, and all later ones.
    pub fn fail_writes_with(&self, error: io::ErrorKind, bytes: u64) {
        self.state().fault = Some(Fault { left: bytes, error });
    }

    /// Makes writes work again.
    pub fn heal(&self) {
        self.state().fault = None;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn alive(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state();
        if state.dead { Err(power_is_cut()) } else { Ok(state) }
    }

    /// Does something that changes the disk, and cuts the power after it if that was planned.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.alive()?;
        let outcome = change(&mut state);
        state.operations += 1;
        match state.planned {
            Some((moment, seed)) if state.operations >= moment => {
                state.power_cut(seed)?;
                Err(power_is_cut())
            }
            _ => outcome,
        }
    }
}

impl State {
    fn power_cut(&mut self, seed: u64) -> io::Result<Losses> {
        self.dead = true;
        let mut random = fastrand::Rng::with_seed(seed);
        // Contents first: a name that comes back may need them copied.
        let blocks = self.contents.lose(&mut random)?;
        let names = self.names.lose(&mut random)?;
        Ok(Losses { blocks, names })
    }

    /// Writes, as far as the fault lets it.
    fn write(&mut self, file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut allowed = bytes;
        let mut failure = Ok(());
        if let Some(fault) = &mut self.fault {
            let fits = usize::try_from(fault.left).unwrap_or(usize::MAX).min(bytes.len());
            fault.left -= fits as u64;
            if fits < bytes.len() {
                allowed = &bytes[..fits];
                failure = Err(fault_error(fault.error));
            }
        }
        self.contents.before_write(file, offset, allowed.len())?;
        file.write_all_at(allowed, offset)?;
        failure
    }

    fn write_whole(&mut self, path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
        let temporary = plain::temporary_name(path)?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&temporary)?;
        self.names.added(&temporary)?;
        self.contents.created(&file)?;
        if let Err(error) = self.write(&file, 0, bytes) {
            self.names.remove(&temporary)?;
            return Err(error);
        }
        if durable {
            self.contents.synced(&file)?;
        }
        self.names.rename(&temporary, path)
    }
}

/// With an errno where a real disk would give one, so that nobody can tell the difference.
fn fault_error(kind: io::ErrorKind) -> io::Error {
    match kind {
        io::ErrorKind::StorageFull => Errno::NOSPC.into(),
        io::ErrorKind::QuotaExceeded => Errno::DQUOT.into(),
        io::ErrorKind::ReadOnlyFilesystem => Errno::ROFS.into(),
        io::ErrorKind::Other => Errno::IO.into(),
        kind => kind.into(),
    }
}

fn power_is_cut() -> io::Error {
    io::Error::other("the power is cut")
}

impl fmt::Debug for PowerLossEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PowerLossEngine").finish_non_exhaustive()
    }
}

#[async_trait]
impl IoEngine for PowerLossEngine {
    fn name(&self) -> &'static str {
        "power loss"
    }

    fn is_direct(&self) -> bool {
        false
    }

    fn create(&self, path: &Path, len: u64) -> io::Result<Arc<IoFile>> {
        self.change(|state| {
            let file = IoFile::create(path, len, false)?;
            state.names.added(path)?;
            state.contents.created(file.buffered())?;
            Ok(Arc::new(file))
        })
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<IoFile>> {
        let _alive = self.alive()?;
        IoFile::open(path, access, false).map(Arc::new)
    }

    async fn write(&self, file: &Arc<IoFile>, offset: u64, buffer: Arc<Buffer>) -> io::Result<()> {
        let (engine, file) = (self.clone(), Arc::clone(file));
        run_blocking(move || engine.change(|state| state.write(file.buffered(), offset, &buffer))).await
    }

    async fn read(
        &self,
        file: &Arc<IoFile>,
        offset: u64,
        len: usize,
        buffer: Buffer,
    ) -> (Buffer, io::Result<()>) {
        let engine = self.clone();
        let mut transfer = Transfer::read(Arc::clone(file), offset, len, buffer);
        let (memory, outcome) = run_blocking(move || {
            match engine.alive() {
                Ok(_alive) => transfer.run(),
                Err(error) => transfer.fail(error),
            }
            transfer.finish()
        })
        .await;
        (memory.into_filled(), outcome)
    }

    fn sync(&self, file: &IoFile) -> io::Result<()> {
        self.change(|state| state.contents.synced(file.buffered()))
    }

    fn sync_all(&self, directory: &Path) -> io::Result<()> {
        self.change(|state| {
            File::open(directory)?;
            state.contents.all_synced();
            state.names.all_synced();
            Ok(())
        })
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        self.change(|state| state.names.synced(directory))
    }

    fn write_whole(&self, path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
        self.change(|state| state.write_whole(path, bytes, durable))
    }

    fn link(&self, existing: &Path, new: &Path) -> io::Result<()> {
        self.change(|state| {
            fs::hard_link(existing, new)?;
            state.names.added(new)
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(|state| state.names.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.change(|state| state.names.remove(path))
    }

    fn create_directories(&self, path: &Path) -> io::Result<()> {
        self.change(|state| state.names.create_directories(path))
    }

    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        self.change(|state| state.names.remove_tree(path))
    }

    fn index_backend(&self, path: &Path) -> io::Result<Box<dyn redb::StorageBackend>> {
        let file = self.change(|state| {
            let is_new = !path.try_exists()?;
            let file = plain::open_index(path)?;
            if is_new {
                state.names.added(path)?;
                state.contents.created(&file)?;
            }
            Ok(file)
        })?;
        Ok(Box::new(backend::Backend::new(self.clone(), file)))
    }
}

/// Keeps file IO off the workers. What has begun goes on when the caller goes away.
async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("the power-loss engine does not panic")
}
