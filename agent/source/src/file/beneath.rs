//! Files of a directory that no link leads out of, whoever else may write there: the kernel looks, and not before it opens
//! but while it does.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

/// Opens a file below a directory whose own path has no links.
pub(super) fn open(root: &Path, name: &str) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let no_links = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let root = openat2(CWD, root, flags | OFlags::DIRECTORY, Mode::empty(), no_links)?;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    // What is no file any more must not make its reader wait.
    let file = openat2(root, name, flags | OFlags::NONBLOCK, Mode::empty(), beneath)?;
    Ok(file.into())
}

/// Whether following links from a path ends somewhere else than below a directory.
pub(super) fn leads_out(root: &Path, path: &Path) -> io::Result<bool> {
    let found: PathBuf = path.canonicalize()?;
    Ok(!found.starts_with(root))
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Read, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn links_are_followed_within_and_not_out_of_a_directory() {
        let outside = tempfile::tempdir().unwrap();
        let root = outside.path().canonicalize().unwrap().join("root");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("a"), "within").unwrap();
        fs::write(outside.path().join("secret"), "without").unwrap();
        symlink("a", root.join("good")).unwrap();
        symlink("../secret", root.join("bad")).unwrap();
        symlink("/etc/passwd", root.join("worse")).unwrap();
        symlink(&root, outside.path().join("link")).unwrap();
        let mut text = String::new();
        open(&root, "good").unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "within");
        for name in ["bad", "worse", "../secret"] {
            assert!(open(&root, name).is_err(), "{name}");
        }
        assert!(!leads_out(&root, &root.join("good")).unwrap());
        assert!(leads_out(&root, &root.join("bad")).unwrap());
        assert!(open(&outside.path().join("link"), "a").is_err(), "the directory was exchanged for a link");
    }
}
