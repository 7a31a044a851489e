//! One open file, with up to two descriptors: a direct one that bypasses the page cache, for aligned blocks, and a
//! buffered one for everything else.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::{
    fs::{AtFlags, FallocateFlags, OFlags, StatxFlags},
    io::Errno,
};

use super::{Access, BLOCK_BYTES};

/// `f_type` of tmpfs, which takes O_DIRECT since Linux 6.6 and ignores it.
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// A file that an [`IoEngine`](super::IoEngine) has opened.
#[derive(Debug)]
pub struct IoFile {
    path: PathBuf,
    buffered: File,
    direct: Option<Direct>,
    /// Whether its bytes are to stay in the page cache, so that nothing goes past it.
    is_cached: AtomicBool,
    len: u64,
}

/// The descriptor that bypasses the page cache, and what it asks of memory.
#[derive(Debug)]
struct Direct {
    file: File,
    memory_alignment: usize,
}

impl IoFile {
    /// Creates a file of `len` bytes with its extents allocated; see [`IoEngine::create`](super::IoEngine::create).
    pub(super) fn create(path: &Path, len: u64, bypass: bool) -> io::Result<Self> {
        let buffered = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        allocate(&buffered, len)
            .and_then(|()| Self::with_direct(path, buffered, Access::Write, bypass))
            .inspect_err(|_| drop(std::fs::remove_file(path)))
    }

    /// Opens a file that exists. A symbolic link is none: it was put there by someone else.
    pub(super) fn open(path: &Path, access: Access, bypass: bool) -> io::Result<Self> {
        let write = access == Access::Write;
        let buffered =
            OpenOptions::new().read(true).write(write).custom_flags(flags(OFlags::NOFOLLOW)).open(path)?;
        Self::with_direct(path, buffered, access, bypass)
    }

    /// Where the file was when it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length when it was opened or created.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it was empty when it was opened or created.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether aligned blocks bypass the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// Has all that moves from now on go through the page cache, or past it again where that can be.
    pub fn set_cached(&self, is_cached: bool) {
        self.is_cached.store(is_cached, Ordering::Relaxed);
    }

    /// The descriptor that goes through the page cache; the one to map or to pass on.
    pub fn buffered(&self) -> &File {
        &self.buffered
    }

    /// The descriptor that a step of a transfer uses.
    pub(super) fn descriptor(&self, direct: bool) -> &File {
        match &self.direct {
            Some(bypass) if direct => &bypass.file,
            _ => &self.buffered,
        }
    }

    /// What the direct descriptor asks the address of memory to be a multiple of; `None` when it is not to be used.
    pub(super) fn memory_alignment(&self) -> Option<usize> {
        let direct = self.direct.as_ref().filter(|_| !self.is_cached.load(Ordering::Relaxed));
        direct.map(|direct| direct.memory_alignment)
    }

    fn with_direct(path: &Path, buffered: File, access: Access, bypass: bool) -> io::Result<Self> {
        let len = buffered.metadata()?.len();
        let direct = if bypass { Direct::open(path, &buffered, access)? } else { None };
        Ok(Self { path: path.to_owned(), buffered, direct, is_cached: AtomicBool::new(false), len })
    }
}

impl Direct {
    /// `None` where the file system does not bypass its cache, or wants more alignment than [`BLOCK_BYTES`].
    fn open(path: &Path, buffered: &File, access: Access) -> io::Result<Option<Self>> {
        let Some(memory_alignment) = direct_alignment(buffered)? else { return Ok(None) };
        let flags = flags(OFlags::DIRECT | OFlags::NOFOLLOW);
        let mut options = OpenOptions::new();
        options.read(true).write(access == Access::Write).custom_flags(flags);
        let file = match options.open(path) {
            Ok(file) => file,
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => return Ok(None),
            Err(error) => return Err(error),
        };
        // Another file may have got this name in between; two files under one handle would lose data.
        let (ours, theirs) = (buffered.metadata()?, file.metadata()?);
        let same = (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino());
        Ok(same.then_some(Self { file, memory_alignment }))
    }
}

fn flags(flags: OFlags) -> i32 {
    i32::try_from(flags.bits()).expect("open flags are positive")
}

/// What O_DIRECT on this file asks of memory, or `None` where it is not to be had.
fn direct_alignment(file: &File) -> io::Result<Option<usize>> {
    // STATX_DIOALIGN came with Linux 6.1; older kernels and some file systems leave it out of the answer's mask.
    let stat = match rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
        Ok(stat) => stat,
        Err(Errno::NOSYS | Errno::PERM) => return Ok(Some(block_bytes())),
        Err(error) => return Err(error.into()),
    };
    if stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0 {
        let (memory, offset) = (stat.stx_dio_mem_align as usize, u64::from(stat.stx_dio_offset_align));
        let usable = memory != 0 && memory <= block_bytes() && offset <= BLOCK_BYTES;
        return Ok(usable.then_some(memory));
    }
    let ignored = rustix::fs::fstatfs(file)?.f_type == TMPFS_MAGIC;
    Ok((!ignored).then_some(block_bytes()))
}

#[expect(clippy::cast_possible_truncation, reason = "4,096")]
pub(super) const fn block_bytes() -> usize {
    BLOCK_BYTES as usize
}

/// Gives a new file its extents, so that they are long and writing cannot run out of space.
fn allocate(file: &File, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    loop {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            // No promise of space here, but the right length.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return file.set_len(len),
            Err(error) => return Err(error.into()),
        }
    }
}
