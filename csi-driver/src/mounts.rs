//! What the kernel has mounted at a target, and taking it away when no agent knows it. Everything here blocks.
//!
//! Only the last step of a path is a volume's; a volume whose agent is away answers no question about itself, so nothing
//! here asks one.

use std::{
    fs, io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use rustix::mount::{UnmountFlags, unmount};

/// The target as the mount table has it: links in the directories above it are followed.
pub(crate) fn resolved(target: &Path) -> PathBuf {
    let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else { return target.to_owned() };
    // A directory that is not there has no links.
    fs::canonicalize(parent).map_or_else(|_| target.to_owned(), |parent| parent.join(name))
}

/// Whether anything is mounted at a target.
pub(crate) fn is_mounted(target: &Path) -> io::Result<bool> {
    let (table, target) = (fs::read("/proc/self/mountinfo")?, resolved(target));
    Ok(table.split(|&byte| byte == b'\n').any(|line| mount_point(line).is_some_and(|found| found == target)))
}

/// Takes whatever is mounted there away, at once; who has a file of it open keeps that.
pub(crate) fn detach(target: &Path) -> io::Result<()> {
    unmount(resolved(target), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).map_err(io::Error::from)
}

/// Whether what is mounted there is a file system that nobody serves any more.
pub(crate) fn is_dead(target: &Path) -> bool {
    let not_connected = rustix::io::Errno::NOTCONN.raw_os_error();
    fs::symlink_metadata(target).is_err_and(|error| error.raw_os_error() == Some(not_connected))
}

/// The fifth word of a line of the table.
fn mount_point(line: &[u8]) -> Option<PathBuf> {
    let word = line.split(|&byte| byte == b' ').nth(4)?;
    Some(std::ffi::OsString::from_vec(unescaped(word)).into())
}

/// Spaces, tabs, line breaks and backslashes are written as a backslash and three octal digits.
fn unescaped(word: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(word.len());
    let mut at = 0;
    while let Some(&byte) = word.get(at) {
        let digits = word.get(at + 1..at + 4).filter(|_| byte == b'\\');
        let code = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(code.unwrap_or(byte));
        at += if code.is_some() { 4 } else { 1 };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_whatever_is_in_their_names() {
        let line = br"40 21 0:35 /abc /mnt/a\040b\134c ro,nosuid shared:5 - fuse weightd rw";
        assert_eq!(mount_point(line), Some(PathBuf::from(r"/mnt/a b\c")));
        assert_eq!(mount_point(b"40 21"), None);
        assert_eq!(mount_point(br"1 2 3 / /x\04 rw"), Some(PathBuf::from(r"/x\04")));
    }

    #[test]
    fn the_root_is_mounted_and_a_new_directory_is_not() {
        let directory = tempfile::tempdir().unwrap();
        assert!(is_mounted(Path::new("/proc")).unwrap());
        assert!(!is_mounted(&directory.path().join("x")).unwrap());
        std::os::unix::fs::symlink("/", directory.path().join("link")).unwrap();
        assert!(is_mounted(&directory.path().join("link/proc")).unwrap(), "by way of a link");
        assert!(!is_dead(Path::new("/proc")) && !is_dead(&directory.path().join("x")));
    }
}
