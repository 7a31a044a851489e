//! What is mounted where, from the kernel's own table.

use std::{
    collections::HashMap,
    ffi::OsString,
    io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use weightd_types::SnapshotKey;

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// The file system, as the kernel numbers it.
    pub(crate) device: String,
    /// The directory of that file system which is mounted.
    pub(crate) root: PathBuf,
    /// Where it is mounted.
    pub(crate) target: PathBuf,
    /// `ext4`, `fuse`, …
    pub(crate) kind: String,
    /// What was given as its source.
    pub(crate) source: String,
}

/// Reads the table of this process's mount namespace. Later mounts come after those they hide.
pub(crate) fn read() -> io::Result<Vec<Mount>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// What one sees at a path: the last mount there.
pub(crate) fn at<'m>(mounts: &'m [Mount], target: &Path) -> Option<&'m Mount> {
    mounts.iter().rev().find(|mount| mount.target == target)
}

/// Mounts that no later one at the same place hides.
pub(crate) fn visible(mounts: &[Mount]) -> impl Iterator<Item = &Mount> {
    let last: HashMap<&Path, usize> =
        mounts.iter().enumerate().map(|(at, mount)| (mount.target.as_path(), at)).collect();
    mounts
        .iter()
        .enumerate()
        .filter(move |(at, mount)| last.get(mount.target.as_path()) == Some(at))
        .map(|(_, mount)| mount)
}

/// The mount that a path lies on.
pub(crate) fn containing<'m>(mounts: &'m [Mount], path: &Path) -> Option<&'m Mount> {
    path.ancestors().find_map(|above| at(mounts, above))
}

/// Whether a mount shows the directory of a snapshot, as those of stores are called: also of one that is gone from where it was
/// mounted, such as a detached disk.
pub(crate) fn is_snapshot(mount: &Mount) -> bool {
    let name = mount.root.file_name().and_then(|name| name.to_str());
    let above = mount.root.parent().and_then(Path::file_name);
    name.is_some_and(|name| name.parse::<SnapshotKey>().is_ok())
        && above.is_some_and(|name| name == "snapshots")
}

fn parse(table: &[u8]) -> Vec<Mount> {
    table.split(|&byte| byte == b'\n').filter_map(parse_line).collect()
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw`: any number of fields before the dash.
fn parse_line(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let text = |at: usize| Some(String::from_utf8_lossy(&unescape(fields.get(at)?)).into_owned());
    let path = |at: usize| Some(PathBuf::from(OsString::from_vec(unescape(fields.get(at)?))));
    Some(Mount {
        device: text(2)?,
        root: path(3)?,
        target: path(4)?,
        kind: text(dash + 1)?,
        source: text(dash + 2)?,
    })
}

/// Spaces, tabs, newlines and backslashes are written as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = octal.filter(|_| first == b'\\').and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { &after[3..] } else { after };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernels_table_are_read() {
        let table = b"21 1 253:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
            40 21 0:35 /abc /mnt/with\\040space ro,nosuid shared:5 master:2 - fuse weightd rw,user_id=0\n\
            nonsense\n";
        let mounts = parse(table);
        assert_eq!(mounts.len(), 2);
        let fuse = &mounts[1];
        assert_eq!(
            (fuse.device.as_str(), fuse.kind.as_str(), fuse.source.as_str()),
            ("0:35", "fuse", "weightd")
        );
        assert_eq!(
            (fuse.root.as_path(), fuse.target.as_path()),
            (Path::new("/abc"), Path::new("/mnt/with space"))
        );
        assert_eq!(containing(&mounts, Path::new("/mnt/with space/x")).unwrap().device, "0:35");
        assert_eq!(containing(&mounts, Path::new("/mnt")).unwrap().device, "253:0");
    }

    #[test]
    fn no_line_panics() {
        bolero::check!().for_each(|bytes: &[u8]| drop(parse(bytes)));
    }
}
