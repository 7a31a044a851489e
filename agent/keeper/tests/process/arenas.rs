//! Memory for tensors: who has it, how much there is, and who pays for it.

use std::{
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Stdio,
};

use memmap2::{MmapMut, MmapOptions};
use weightd_harness::skip;

use super::*;

const MIB: u64 = 1 << 20;

fn arena(client: &OwnedFd, name: &str, bytes: u64) -> OwnedFd {
    let (answer, mut descriptors) = ask(client, &format!("arena {name} {bytes}"));
    assert_eq!((answer.as_str(), descriptors.len()), ("ok", 1));
    descriptors.pop().unwrap()
}

#[expect(unsafe_code, reason = "a mapping")]
fn map(memory: &OwnedFd) -> MmapMut {
    // SAFETY: nobody can shorten it, and only this test writes to it.
    unsafe { MmapOptions::new().map_mut(memory) }.unwrap()
}

#[test]
fn an_arena_outlives_who_filled_it_and_the_keeper_that_made_it() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("keeper.sock");
    let mut old = Keeper::start(&socket, &["--resident-limit", "64Mi"]);
    let first = client(&socket);
    let memory = arena(&first, "arena/a", 8 * MIB);
    assert_eq!(ask(&first, &format!("allocate arena/a 0 {}", 8 * MIB)).0, "ok");
    map(&memory)[5_000_000] = 7;
    drop((first, memory));
    let _new = Keeper::start(&socket, &["--replace", "--resident-limit", "16Mi"]);
    assert_eq!(old.code(), Some(0));
    let second = client(&socket);
    assert_eq!(ask(&second, "list arena/").0, "ok arena/a");
    let (answer, descriptors) = ask(&second, "attend arena/a");
    assert_eq!((answer.as_str(), descriptors.len()), ("ok", 1));
    assert_eq!(map(&descriptors[0])[5_000_000], 7);
    assert_eq!(ask(&second, "room").0, format!("ok {} {}", 16 * MIB, 8 * MIB), "what was handed over counts");
}

#[test]
fn there_are_no_arenas_beyond_the_limit() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("keeper.sock");
    let _keeper = Keeper::start(&socket, &["--resident-limit", "8Mi"]);
    let client = client(&socket);
    arena(&client, "a", 6 * MIB);
    let full = ask(&client, &format!("arena b {}", 4 * MIB)).0;
    assert!(full.starts_with(&format!("full {} {} ", 8 * MIB, 6 * MIB)), "{full}");
    assert_eq!(ask(&client, "attend b").0, "none");
    let taken = ask(&client, &format!("arena a {}", 2 * MIB)).0;
    assert!(taken.starts_with("error something is kept as a already"), "{taken}");
    assert_eq!(ask(&client, "attend a").1.len(), 1);
    assert_eq!(ask(&client, "drop a").0, "ok");
    assert_eq!(ask(&client, "room").0, format!("ok {} 0", 8 * MIB));
    arena(&client, "b", 4 * MIB);
}

#[test]
fn nonsense_about_arenas_is_refused_and_by_default_there_are_none() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("keeper.sock");
    let _keeper = Keeper::start(&socket, &[]);
    let client = client(&socket);
    assert!(ask(&client, &format!("arena a {}", 2 * MIB)).0.starts_with("full 0 0 "));
    put(&client, "plain", "text");
    for line in [
        "arena a 0",
        "arena a 5000",
        "arena a x",
        "arena a",
        "allocate none 0 4096",
        "allocate plain 0 4096",
        "put arena a 4096",
    ] {
        assert!(ask(&client, line).0.starts_with("error "), "{line}");
    }
    // Only a keeper hands anything over, and only when it is asked to.
    for line in ["keep arena x 2097152", "keep plain x 3"] {
        send(&client, line.as_bytes(), &[file_with("").as_fd()]);
        assert!(receive(&client).0.starts_with("error "), "{line}");
        assert_eq!(ask(&client, "attend x").0, "none");
    }
    let code =
        |size: &str| Keeper::spawn(&directory.path().join("other"), &["--resident-limit", size]).code();
    assert_eq!((code("much"), code("1.5Gi")), (Some(64), Some(64)));
}

/// A cgroup of this test's own below the one it is in.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(limit: u64) -> Option<Self> {
        let places = fs::read_to_string("/proc/self/cgroup").unwrap();
        let below = |tree: &str, marker: &str| {
            let place = places.lines().find_map(|line| Some(line.split_once(marker)?.1))?;
            Some(Path::new(tree).join(place.trim_start_matches('/')))
        };
        let name = format!("weightd-test-{}", std::process::id());
        for (tree, marker, file) in [
            ("/sys/fs/cgroup/memory", ":memory:", "memory.limit_in_bytes"),
            ("/sys/fs/cgroup", "0::", "memory.max"),
        ] {
            let Some(directory) = below(tree, marker).map(|place| place.join(&name)) else { continue };
            if fs::create_dir(&directory).is_ok() {
                let group = Self(directory);
                if fs::write(group.0.join(file), limit.to_string()).is_ok() {
                    return Some(group);
                }
            }
        }
        None
    }

    fn used(&self) -> u64 {
        let read = |file: &str| fs::read_to_string(self.0.join(file)).ok();
        let text = read("memory.usage_in_bytes").or_else(|| read("memory.current")).unwrap();
        text.trim().parse().unwrap()
    }

    fn keeper(&self, socket: &Path, limit: &str) -> Keeper {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ >\"$0\"/cgroup.procs && exec \"$@\""]).arg(&self.0);
        command.arg(env!("CARGO_BIN_EXE_weightd-keeper")).arg("--socket").arg(socket);
        let keeper = Keeper(command.args(["--resident-limit", limit]).stderr(Stdio::null()).spawn().unwrap());
        until("it listens", || connect(unix_socket(), &SocketAddrUnix::new(socket).unwrap()).is_ok());
        keeper
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        until("nobody is left in it", || fs::remove_dir(&self.0).is_ok());
    }
}

#[test]
fn the_keepers_cgroup_pays_and_is_never_asked_for_more_than_it_has() {
    let Some(cgroup) = Cgroup::new(256 * MIB) else {
        return skip("no cgroup for memory can be made here: it takes root");
    };
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("keeper.sock");
    let mut keeper = cgroup.keeper(&socket, "10Gi");
    let client = client(&socket);
    let before = cgroup.used();
    let memory = arena(&client, "a", 128 * MIB);
    assert_eq!(ask(&client, &format!("allocate a 0 {}", 128 * MIB)).0, "ok");
    map(&memory).fill(1);
    let paid = cgroup.used() - before;
    assert!(paid >= 128 * MIB, "{paid}: who fills it does not pay");
    // 128 more would fit into the limit of arenas, and not into the cgroup's.
    let full = ask(&client, &format!("arena b {}", 128 * MIB)).0;
    assert!(full.starts_with("full ") && full.contains("cgroup"), "{full}");
    // What is kept no more, and mapped by someone, is there all the same.
    assert_eq!(ask(&client, "drop a").0, "ok");
    let mapped = map(&memory);
    drop(memory);
    assert!(ask(&client, &format!("arena b {}", 128 * MIB)).0.starts_with("full "));
    drop(mapped);
    let memory = arena(&client, "b", 128 * MIB);
    assert_eq!(ask(&client, &format!("allocate b 0 {}", 128 * MIB)).0, "ok");
    assert!(keeper.0.try_wait().unwrap().is_none(), "nobody was killed for it");
    drop((memory, client));
    drop(keeper);
}
