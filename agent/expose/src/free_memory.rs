//! How much memory there is room for, page cache or other.
//!
//! Page cache counts as available memory, because the kernel takes it back when someone needs it: reading a file does
//! not make less of what is available. So what is warm has to fit into what is available, together with a floor that
//! is left alone; programs that grow make less available, and the warm-up stops. The same holds within a cgroup, to
//! which page cache is charged that is read from it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use weightd_types::display_bytes;

/// The least floor where none is configured.
const FLOOR_BYTES: u64 = 1 << 30;
/// Of all memory, the part that is left alone where no floor is configured.
const FLOOR_DIVISOR: u64 = 10;

/// The memory of the machine, and of the cgroups this process is in.
#[derive(Debug)]
pub(crate) struct FreeMemory {
    /// Where `proc` and `sys` are.
    root: PathBuf,
    floor: Option<u64>,
}

/// Memory that someone has set a bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bound {
    whose: String,
    total: u64,
    available: u64,
}

impl FreeMemory {
    pub(crate) fn new(root: impl Into<PathBuf>, floor: Option<u64>) -> Self {
        Self { root: root.into(), floor }
    }

    /// Whether so much page cache, what is there of it included, fits, or so much other memory. The error says why not.
    pub(crate) fn has_room_for(&self, bytes: u64) -> Result<(), String> {
        self.machine_has_room_for(bytes)?;
        self.fits_in(self.cgroups(), bytes)
    }

    /// The same for memory that is not charged to this process's cgroups.
    pub(crate) fn machine_has_room_for(&self, bytes: u64) -> Result<(), String> {
        let machine = self.machine().ok_or("/proc/meminfo does not say how much memory is available")?;
        self.fits_in([machine], bytes)
    }

    fn fits_in(&self, bounds: impl IntoIterator<Item = Bound>, bytes: u64) -> Result<(), String> {
        for Bound { whose, total, available } in bounds {
            let floor = self.floor.unwrap_or_else(|| FLOOR_BYTES.max(total / FLOOR_DIVISOR).min(total / 2));
            if bytes.saturating_add(floor) > available {
                return Err(format!(
                    "{whose} has {} available of {}, and {} of that is left alone",
                    display_bytes(available),
                    display_bytes(total),
                    display_bytes(floor)
                ));
            }
        }
        Ok(())
    }

    fn machine(&self) -> Option<Bound> {
        let text = fs::read_to_string(self.root.join("proc/meminfo")).ok()?;
        let kilobytes = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_suffix("kB"))?;
            value.trim().parse::<u64>().ok()?.checked_mul(1024)
        };
        let (total, available) = (kilobytes("MemTotal:")?, kilobytes("MemAvailable:")?);
        Some(Bound { whose: "the machine".to_owned(), total, available })
    }

    /// Cgroups of this process that have a bound, the innermost first. There may be none, or none to be seen.
    fn cgroups(&self) -> Vec<Bound> {
        let text = fs::read_to_string(self.root.join("proc/self/cgroup")).unwrap_or_default();
        // Version 2 alone; with a controller of version 1 there is no such file to be found.
        let path = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
        // One outside of this process's namespace is not to be seen.
        let path = if path.split('/').any(|part| part == "..") { "" } else { path };
        let top = self.root.join("sys/fs/cgroup");
        let directory = top.join(path);
        let within = directory.ancestors().take_while(|above| above.starts_with(&top));
        within.filter_map(|directory| cgroup(directory, &top)).collect()
    }
}

fn cgroup(directory: &Path, top: &Path) -> Option<Bound> {
    let number = |name: &str| fs::read_to_string(directory.join(name)).ok()?.trim().parse::<u64>().ok();
    // "max" is no number, and no bound.
    let total = [number("memory.max"), number("memory.high")].into_iter().flatten().min()?;
    let stat = fs::read_to_string(directory.join("memory.stat")).unwrap_or_default();
    let file = |name: &str| {
        let value = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.and_then(|value| value.parse::<u64>().ok()).unwrap_or(0)
    };
    // What is not page cache, which stays.
    let kept = number("memory.current")?.saturating_sub(file("active_file") + file("inactive_file"));
    let name = directory.strip_prefix(top).unwrap_or(directory);
    let whose = format!("the agent's cgroup /{}", name.display());
    Some(Bound { whose, total, available: total.saturating_sub(kept) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// A machine with 100 GiB of memory, and so much of it available.
    fn machine(available: u64) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc/self")).unwrap();
        let text = format!(
            "MemTotal:       {} kB\nMemFree:               1 kB\nMemAvailable:   {} kB\n",
            100 * GIB / 1024,
            available / 1024
        );
        fs::write(root.path().join("proc/meminfo"), text).unwrap();
        root
    }

    /// Writes what a cgroup says of itself.
    fn group(root: &Path, path: &str, files: &[(&str, String)]) {
        fs::write(root.join("proc/self/cgroup"), "0::/pods/agent\n").unwrap();
        let directory = root.join("sys/fs/cgroup").join(path);
        fs::create_dir_all(&directory).unwrap();
        for (name, text) in files {
            fs::write(directory.join(name), text).unwrap();
        }
    }

    #[test]
    fn what_is_warm_and_the_floor_fit_into_what_is_available() {
        let root = machine(50 * GIB);
        let room = |floor, bytes| FreeMemory::new(root.path(), floor).has_room_for(bytes);
        assert_eq!(room(None, 40 * GIB), Ok(()), "a tenth is left alone");
        let why = room(None, 40 * GIB + 1).unwrap_err();
        assert!(why.contains("the machine has 50.00 GiB available of 100.00 GiB"), "{why}");
        assert!(why.contains("10.00 GiB of that is left alone"), "{why}");
        assert_eq!(room(Some(GIB), 49 * GIB), Ok(()));
        room(Some(GIB), 49 * GIB + 1).unwrap_err();
        room(Some(u64::MAX), 0).unwrap_err();
    }

    #[test]
    fn memory_that_cannot_be_looked_at_is_not_there() {
        let root = tempfile::tempdir().unwrap();
        FreeMemory::new(root.path(), Some(0)).has_room_for(0).unwrap_err();
        fs::create_dir(root.path().join("proc")).unwrap();
        fs::write(root.path().join("proc/meminfo"), "MemTotal: many kB\nMemAvailable: 1 kB\n").unwrap();
        FreeMemory::new(root.path(), Some(0)).has_room_for(0).unwrap_err();
        FreeMemory::new("/", Some(1)).has_room_for(1).unwrap();
    }

    #[test]
    fn the_bounds_of_its_cgroups_count_and_page_cache_does_not_fill_them() {
        let root = machine(50 * GIB);
        let room = |bytes| FreeMemory::new(root.path(), None).has_room_for(bytes);
        let current = ("memory.current", (6 * GIB).to_string());
        let stat = format!("anon 1\nactive_file {}\ninactive_file {}\n", GIB, 3 * GIB);
        let stat = ("memory.stat", stat);
        group(
            root.path(),
            "pods/agent",
            &[("memory.max", "max\n".to_owned()), current.clone(), stat.clone()],
        );
        assert_eq!(room(40 * GIB), Ok(()), "no bound");
        // 2 of 8 GiB are kept by other things than page cache, and the floor is the least there is.
        group(root.path(), "pods/agent", &[("memory.max", format!("{}\n", 8 * GIB))]);
        assert_eq!(room(5 * GIB), Ok(()));
        let why = room(5 * GIB + 1).unwrap_err();
        assert!(why.contains("the agent's cgroup /pods/agent has 6.00 GiB available of 8.00 GiB"), "{why}");
        group(root.path(), "pods/agent", &[("memory.high", format!("{}\n", 4 * GIB))]);
        assert_eq!(room(GIB), Ok(()));
        room(GIB + 1).unwrap_err();
        group(root.path(), "pods", &[("memory.max", (3 * GIB).to_string()), current, stat]);
        let why = room(GIB).unwrap_err();
        assert!(why.contains("cgroup /pods has 1.00 GiB"), "the one above counts too: {why}");
    }

    #[test]
    fn a_cgroup_that_cannot_be_seen_is_no_bound() {
        let root = machine(50 * GIB);
        fs::write(root.path().join("proc/self/cgroup"), "4:memory:/a\n0::/../b\n").unwrap();
        assert_eq!(FreeMemory::new(root.path(), None).cgroups(), []);
        assert_eq!(FreeMemory::new(root.path(), None).has_room_for(GIB), Ok(()));
    }
}
