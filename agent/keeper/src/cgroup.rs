//! How much memory this process's cgroups leave it.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The two kinds of control groups: where the tree is, which line of `/proc/self/cgroup` names the place in it, and the
/// files there that hold limit and use.
const KINDS: [(&str, &str, &str, &str); 2] = [
    ("/sys/fs/cgroup", "0::", "memory.max", "memory.current"),
    ("/sys/fs/cgroup/memory", ":memory:", "memory.limit_in_bytes", "memory.usage_in_bytes"),
];

/// Bytes until the nearest limit, of this cgroup or one above it; `None` where there is none, or none is seen.
pub(crate) fn headroom() -> Option<u64> {
    let places = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    headroom_in(Path::new("/"), &places)
}

fn headroom_in(root: &Path, places: &str) -> Option<u64> {
    let mut least = None;
    for (tree, marker, limit, used) in KINDS {
        let Some(place) = places.lines().find_map(|line| Some(line.split_once(marker)?.1)) else { continue };
        let tree = root.join(tree.trim_start_matches('/'));
        let own: PathBuf = tree.join(place.trim_start_matches('/'));
        // In a container the tree often begins with its own cgroup, whatever the place is called outside.
        let own = if own.starts_with(&tree) && own.is_dir() { own } else { tree.clone() };
        for group in own.ancestors().take_while(|group| group.starts_with(&tree)) {
            let number = |file: &str| fs::read_to_string(group.join(file)).ok()?.trim().parse::<u64>().ok();
            if let (Some(limit), Some(used)) = (number(limit), number(used)) {
                let left = limit.saturating_sub(used.saturating_sub(reclaimable(group)));
                least = Some(least.map_or(left, |least: u64| least.min(left)));
            }
        }
    }
    least
}

/// Page cache that nobody has used twice, which goes before anyone is killed. A model that loads fills a cgroup with it.
fn reclaimable(group: &Path) -> u64 {
    let text = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let of = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    of("total_inactive_file ").or_else(|| of("inactive_file ")).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes what a cgroup says of itself.
    fn write(root: &Path, place: &str, files: [(&str, &str); 2]) {
        let directory = root.join(place);
        fs::create_dir_all(&directory).unwrap();
        files.into_iter().for_each(|(name, text)| fs::write(directory.join(name), text).unwrap());
    }

    #[test]
    fn the_nearest_limit_counts_in_both_kinds() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        assert_eq!(headroom_in(root, "0::/a/b\n"), None);
        write(root, "sys/fs/cgroup/a/b", [("memory.max", "max\n"), ("memory.current", "7\n")]);
        assert_eq!(headroom_in(root, "0::/a/b\n"), None);
        write(root, "sys/fs/cgroup/a", [("memory.max", "100\n"), ("memory.current", "40\n")]);
        assert_eq!(headroom_in(root, "0::/a/b\n"), Some(60));
        write(root, "sys/fs/cgroup/a/b", [("memory.max", "30\n"), ("memory.current", "40\n")]);
        assert_eq!(headroom_in(root, "0::/a/b\n"), Some(0));
        fs::write(root.join("sys/fs/cgroup/a/b/memory.stat"), "anon 1\ninactive_file 25\n").unwrap();
        assert_eq!(headroom_in(root, "0::/a/b\n"), Some(15), "page cache goes first");
        fs::write(root.join("sys/fs/cgroup/a/b/memory.stat"), "").unwrap();
        let first = [("memory.limit_in_bytes", "90\n"), ("memory.usage_in_bytes", "1\n")];
        write(root, "sys/fs/cgroup/memory", first);
        assert_eq!(
            headroom_in(root, "5:memory:/kubepods/x\n1:name=systemd:/\n"),
            Some(89),
            "a container's own"
        );
    }
}
