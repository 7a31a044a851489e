//! Answers to the kernel.

use std::{
    collections::HashMap,
    ffi::OsStr,
    io,
    path::PathBuf,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, UNIX_EPOCH},
};

use fuser::{
    Errno, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyIoctl,
    ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use tokio::runtime::Handle;
use weightd_store::Store;
use weightd_types::{ByteRange, CHUNK_BYTES};

use super::{
    nodes::{Family, Node},
    pending::PendingRead,
    tree::{Kind, attributes},
};
use crate::{Metrics, events::Events, reading::Reader, shown::Shown, sys};

/// Snapshots never change, so what the kernel knows of them it knows for ever.
const FOREVER: Duration = Duration::from_secs(1 << 31);
/// How long the kernel goes by the name of a file that is not complete: after that it finds the number that stands for
/// the blob. Telling the kernel to forget the name would be quicker, but takes a lock that someone may hold who waits
/// for an answer; an agent that is killed then could not even die.
const WHILE_LOADING: Duration = Duration::from_secs(1);
/// Requests of read-ahead that the kernel may have on their way.
const READ_AHEAD_REQUESTS: u16 = 64;

/// What the file system shares with those who fill it.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) reader: Reader,
    pub(crate) metrics: Metrics,
    pub(crate) shown: RwLock<HashMap<Family, Arc<Shown>>>,
    /// Set when the agent leaves and a keeper stays: what is not answered is left to the next agent.
    pub(crate) leaving: Arc<AtomicBool>,
    /// Whether complete files are opened straight from their blobs.
    pub(crate) passes_through: AtomicBool,
    /// Told what went wrong with reads.
    pub(crate) events: Arc<Events>,
}

/// Registers complete files with the kernel.
pub(crate) trait OpenThrough: std::fmt::Debug + Send + Sync {
    /// The number to open a file with.
    fn register(&self, node: Node, blob: PathBuf) -> io::Result<u32>;
}

/// The file system of a node: a directory for each snapshot that is shown.
#[derive(Debug)]
pub(crate) struct VolumesFilesystem {
    shared: Arc<Shared>,
    runtime: Handle,
    /// How a complete file is opened straight from its blob; absent where it is not. Its numbers mean something to one
    /// connection only.
    through: Option<Arc<dyn OpenThrough>>,
}

impl Shared {
    pub(crate) fn find(&self, family: Family) -> Option<Arc<Shown>> {
        self.shown.read().unwrap_or_else(PoisonError::into_inner).get(&family).cloned()
    }

    pub(crate) fn passes_through(&self) -> bool {
        self.passes_through.load(Ordering::Acquire)
    }

    /// Reads part of a file, to its end at most.
    async fn read(&self, shown: &Shown, position: usize, offset: u64, size: u32, pending: PendingRead) {
        let end = shown.tree.length(position).min(offset.saturating_add(u64::from(size)));
        let range = ByteRange::new(offset.min(end), end);
        match self.reader.read(shown, position, range).await {
            Ok(bytes) => {
                self.metrics.reads.inc();
                self.metrics.read_bytes.inc_by(range.len());
                pending.data(&bytes);
            }
            Err(why) => {
                if !self.leaving.load(Ordering::Acquire) {
                    self.metrics.failed_reads.inc();
                    tracing::error!(object = shown.url(position), %range, why, "a read failed");
                    self.events.tell(shown, Some(position), &why);
                }
                pending.error(Errno::EIO);
            }
        }
    }
}

impl VolumesFilesystem {
    pub(crate) fn new(shared: Arc<Shared>, runtime: Handle, through: Option<Arc<dyn OpenThrough>>) -> Self {
        Self { shared, runtime, through }
    }

    /// What opens a file straight from its blob, and where that is, if that is what new opens should do.
    fn through(&self, shown: &Shown, position: usize) -> Option<(&dyn OpenThrough, PathBuf)> {
        let through = self.through.as_deref()?;
        Some((through, self.shared.store.whole_blob(&shown.blob(position))?))
    }

    /// The node that a name stands for now.
    fn node(&self, shown: &Shown, index: u32) -> Node {
        let through = match shown.tree.kind(index) {
            Some(Kind::File(position)) => self.through(shown, position).is_some(),
            _ => false,
        };
        Node { family: shown.tree.family, index, through }
    }

    /// The snapshot that a node is of. One that is no longer shown is stale, not missing.
    fn find(&self, number: INodeNo) -> Result<(Arc<Shown>, Node), Errno> {
        let node = Node::of(number).ok_or(Errno::EISDIR)?;
        Ok((self.shared.find(node.family).ok_or(Errno::ESTALE)?, node))
    }

    fn look_up(&self, parent: INodeNo, name: &OsStr) -> Result<(Arc<Shown>, Node), Errno> {
        let name = name.to_str().ok_or(Errno::ENOENT)?;
        if parent == INodeNo::ROOT {
            let key = name.parse().map_err(|_| Errno::ENOENT)?;
            let shown = self.shared.find(Family::of(&key)).ok_or(Errno::ENOENT)?;
            let node = Node::directory(shown.tree.family);
            return Ok((shown, node));
        }
        let (shown, node) = self.find(parent)?;
        let index = shown.tree.child(node.index, name).ok_or(Errno::ENOENT)?;
        let node = self.node(&shown, index);
        Ok((shown, node))
    }

    /// For root alone: others see a snapshot only where it is shown to them.
    fn root() -> fuser::FileAttr {
        attributes(INodeNo::ROOT, FileType::Directory, 0o500, 2, 0, UNIX_EPOCH)
    }

    /// Adds the root's entries from an offset on, until the answer is full.
    fn list_root(&self, offset: usize, reply: &mut ReplyDirectory) {
        let shown = self.shared.shown.read().unwrap_or_else(PoisonError::into_inner);
        let mut snapshots: Vec<_> =
            shown.values().map(|shown| (shown.key().to_string(), shown.tree.family)).collect();
        snapshots.sort();
        let dots = [".", ".."].map(|name| (INodeNo::ROOT, FileType::Directory, name));
        let node = |family| Node::directory(family).number();
        let snapshots =
            snapshots.iter().map(|(name, family)| (node(*family), FileType::Directory, name.as_str()));
        add(dots.into_iter().chain(snapshots), offset, reply);
    }

    /// Adds a directory's entries from an offset on, until the answer is full.
    fn list(&self, directory: INodeNo, offset: usize, reply: &mut ReplyDirectory) -> Result<(), Errno> {
        let (shown, node) = self.find(directory)?;
        let tree = &shown.tree;
        let children = tree.children(node.index).ok_or(Errno::ENOTDIR)?;
        let parent = match tree.parent(node.index) {
            Some(above) if node.index != 0 => Node { index: above, ..node }.number(),
            _ => INodeNo::ROOT,
        };
        let dots = [(directory, FileType::Directory, "."), (parent, FileType::Directory, "..")];
        let children = children.map(|child| {
            let kind = match tree.kind(child.index) {
                Some(Kind::Directory) => FileType::Directory,
                _ => FileType::RegularFile,
            };
            (Node { index: child.index, ..node }.number(), kind, child.name)
        });
        add(dots.into_iter().chain(children), offset, reply);
        Ok(())
    }

    /// Opens a complete file straight from its blob.
    ///
    /// The kernel may know it as complete although it is not: from before it was removed, if the agent died that would
    /// have had it forgotten, or from one that passed files through. What lies in the store then is half a file. Hearing
    /// that this is stale, the kernel looks the name up again.
    fn open_through(&self, shown: &Shown, node: Node, position: usize, reply: ReplyOpen) {
        let Some((through, blob)) = self.through(shown, position) else { return reply.error(Errno::ESTALE) };
        match through.register(node, blob) {
            Ok(id) => {
                self.shared.metrics.passthrough_opens.inc();
                shown.mark_passed(position);
                sys::open_through(reply, FileHandle(0), id);
            }
            Err(error) => {
                let url = shown.url(position);
                tracing::error!(%error, url, "a complete file could not be handed to the kernel");
                reply.error(Errno::EIO);
            }
        }
    }
}

/// Adds entries from an offset on, until the answer is full.
fn add<'n>(
    entries: impl Iterator<Item = (INodeNo, FileType, &'n str)>,
    offset: usize,
    reply: &mut ReplyDirectory,
) {
    for (at, (number, kind, name)) in entries.enumerate().skip(offset) {
        if reply.add(number, at as u64 + 1, kind, name) {
            return;
        }
    }
}

impl Filesystem for VolumesFilesystem {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Each where the kernel has it; the answer to the first request decides for the connection's whole life.
        for wish in [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_PASSTHROUGH,
            InitFlags::FUSE_HAS_RESEND,
        ] {
            let _ = config.add_capabilities(wish);
        }
        // Blobs lie on ordinary file systems, which is one layer below.
        let _ = config.set_max_stack_depth(1);
        let _ = config.set_max_background(READ_AHEAD_REQUESTS);
        let _ = config.set_congestion_threshold(READ_AHEAD_REQUESTS);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (shown, node) = match self.look_up(parent, name) {
            Ok(found) => found,
            Err(errno) => return reply.error(errno),
        };
        let will_change = self.through.is_some() && !node.through;
        let is_file = matches!(shown.tree.kind(node.index), Some(Kind::File(_)));
        let valid = if is_file && will_change { WHILE_LOADING } else { FOREVER };
        match shown.tree.attributes(node) {
            Some(attributes) => reply.entry_with_ttls(&FOREVER, &valid, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        if number == INodeNo::ROOT {
            return reply.attr(&FOREVER, &Self::root());
        }
        let (shown, node) = match self.find(number) {
            Ok(found) => found,
            Err(errno) => return reply.error(errno),
        };
        match shown.tree.attributes(node) {
            Some(attributes) => reply.attr(&FOREVER, &attributes),
            None => reply.error(Errno::ESTALE),
        }
    }

    fn open(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let (shown, node) = match self.find(number) {
            Ok(found) => found,
            Err(errno) => return reply.error(errno),
        };
        match shown.tree.kind(node.index) {
            Some(Kind::File(position)) if node.through => self.open_through(&shown, node, position, reply),
            Some(Kind::File(_) | Kind::Placeholder) => {
                // Closing a file must not have to wait for an agent.
                reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
            }
            Some(Kind::Directory) => reply.error(Errno::EISDIR),
            None => reply.error(Errno::ESTALE),
        }
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let (shown, node) = match self.find(number) {
            Ok(found) => found,
            Err(errno) => return reply.error(errno),
        };
        let Some(Kind::File(position)) = shown.tree.kind(node.index) else { return reply.data(&[]) };
        let chunk = offset / CHUNK_BYTES;
        if shown.goes_on(position, chunk)
            && let Ok(chunk) = u32::try_from(chunk)
        {
            let (shared, shown) = (Arc::clone(&self.shared), Arc::clone(&shown));
            self.runtime.spawn(async move { shared.reader.read_ahead(&shown, position, chunk).await });
        }
        let end = shown.tree.length(position).min(offset.saturating_add(u64::from(size)));
        if offset < end
            && let Some(bytes) = self.shared.reader.at_once(&shown, position, ByteRange::new(offset, end))
        {
            self.shared.metrics.reads.inc();
            self.shared.metrics.read_bytes.inc_by(end - offset);
            return reply.data(&bytes);
        }
        let pending = PendingRead::new(reply, Arc::clone(&self.shared.leaving));
        let shared = Arc::clone(&self.shared);
        self.runtime.spawn(async move { shared.read(&shown, position, offset, size, pending).await });
    }

    /// There are no extended attributes. The kernel asks no second time.
    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let forever = FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
        reply.opened(FileHandle(0), if number == INodeNo::ROOT { FopenFlags::empty() } else { forever });
    }

    fn readdir(&self, _: &Request, number: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        if number == INodeNo::ROOT {
            self.list_root(offset, &mut reply);
            return reply.ok();
        }
        match self.list(number, offset, &mut reply) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    /// A volume is as large as its snapshot, and full. The root is all that is shown.
    fn statfs(&self, _: &Request, number: INodeNo, reply: ReplyStatfs) {
        let sum = |shown: &Shown| (shown.tree.manifest.size(), shown.tree.manifest.objects.len() as u64);
        let (bytes, files) = match self.find(number) {
            Ok((shown, _)) => sum(&shown),
            Err(_) => {
                let shown = self.shared.shown.read().unwrap_or_else(PoisonError::into_inner);
                shown.values().map(|shown| sum(shown)).fold((0, 0), |(a, b), (c, d)| (a + c, b + d))
            }
        };
        reply.statfs(bytes.div_ceil(4096), 0, 0, files, 0, 4096, 255, 4096);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }
}
