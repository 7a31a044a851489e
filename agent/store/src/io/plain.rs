//! What the engines do through plain system calls, the same in all of them: names, links, syncs, small files.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use super::IoFile;

/// What the name of a file ends with while [`write_whole`] is at it. A crash can leave such files behind.
pub const TEMPORARY_SUFFIX: &str = ".writing";

/// This process, in temporary names. Its id would not do: in a container every process has the same.
static PROCESS: LazyLock<String> = LazyLock::new(|| format!("{:016x}", fastrand::u64(..)));

/// Makes a file's data durable, and as much of its metadata as reading it back needs.
pub(super) fn sync(file: &IoFile) -> io::Result<()> {
    file.buffered().sync_data()
}

/// Makes all of a file system durable.
pub(super) fn sync_all(directory: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(directory)?)?)
}

/// Makes the names in a directory durable.
pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Writes a small file under a temporary name and renames it into place.
pub(super) fn write_whole(path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
    let temporary = temporary_name(path)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)
        .and_then(|()| if durable { file.sync_data() } else { Ok(()) })
        .and_then(|()| fs::rename(&temporary, path))
        .inspect_err(|_| drop(fs::remove_file(&temporary)))
}

/// Removes a file, if it is there.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    unless_missing(fs::remove_file(path))
}

/// Removes a directory and what is in it, if it is there.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    unless_missing(fs::remove_dir_all(path))
}

/// Opens the index's file, created when missing. The database locks it, so two agents cannot share it.
pub(super) fn index_backend(path: &Path) -> io::Result<Box<dyn redb::StorageBackend>> {
    let file = open_index(path)?;
    Ok(Box::new(redb::backends::FileBackend::new(file).map_err(io::Error::other)?))
}

/// The index's file itself.
pub(super) fn open_index(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Whether a file is what another process that died left of [`write_whole`].
pub(crate) fn is_leftover(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let inner = name.strip_prefix('.').and_then(|name| name.strip_suffix(TEMPORARY_SUFFIX));
    let Some((process, number)) =
        inner.and_then(|inner| inner.rsplit_once('.')).and_then(|(_, unique)| unique.split_once('-'))
    else {
        return false;
    };
    let is_hexadecimal = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hexadecimal(process) && is_hexadecimal(number) && process != *PROCESS
}

/// A name beside `path` that nothing else uses.
pub(crate) fn temporary_name(path: &Path) -> io::Result<PathBuf> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{} does not name a file", path.display()))
    })?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    temporary.push(format!(".{}-{number}{TEMPORARY_SUFFIX}", *PROCESS));
    Ok(path.with_file_name(temporary))
}

/// The methods of [`IoEngine`](super::IoEngine) that both real engines leave to plain system calls.
macro_rules! plain_operations {
    () => {
        fn create(&self, path: &Path, len: u64) -> io::Result<Arc<IoFile>> {
            IoFile::create(path, len, true).map(Arc::new)
        }

        fn open(&self, path: &Path, access: Access) -> io::Result<Arc<IoFile>> {
            IoFile::open(path, access, true).map(Arc::new)
        }

        fn sync(&self, file: &IoFile) -> io::Result<()> {
            plain::sync(file)
        }

        fn sync_all(&self, directory: &Path) -> io::Result<()> {
            plain::sync_all(directory)
        }

        fn sync_directory(&self, directory: &Path) -> io::Result<()> {
            plain::sync_directory(directory)
        }

        fn write_whole(&self, path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
            plain::write_whole(path, bytes, durable)
        }

        fn link(&self, existing: &Path, new: &Path) -> io::Result<()> {
            std::fs::hard_link(existing, new)
        }

        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            std::fs::rename(from, to)
        }

        fn remove(&self, path: &Path) -> io::Result<()> {
            plain::remove(path)
        }

        fn create_directories(&self, path: &Path) -> io::Result<()> {
            std::fs::create_dir_all(path)
        }

        fn remove_tree(&self, path: &Path) -> io::Result<()> {
            plain::remove_tree(path)
        }

        fn index_backend(&self, path: &Path) -> io::Result<Box<dyn redb::StorageBackend>> {
            plain::index_backend(path)
        }
    };
}
pub(super) use plain_operations;

fn unless_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
