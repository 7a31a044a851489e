use std::{collections::BTreeMap, os::unix::fs::MetadataExt, path::PathBuf};

use tempfile::TempDir;

use super::*;
use crate::io::{
    BufferPool,
    conformance::{on_disk, pattern},
};

/// An engine on a directory that a test has filled before.
struct Setup {
    engine: PowerLossEngine,
    pool: BufferPool,
    directory: TempDir,
}

fn setup() -> Setup {
    let outer = on_disk();
    fs::create_dir(outer.path().join("store")).unwrap();
    let engine = PowerLossEngine::new(&outer.path().join("store")).unwrap();
    Setup { engine, pool: BufferPool::new(2).unwrap(), directory: outer }
}

impl Setup {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("store").join(name)
    }

    async fn write(&self, file: &Arc<IoFile>, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut buffer = self.pool.acquire().await;
        buffer.extend_from_slice(bytes);
        self.engine.write(file, offset, Arc::new(buffer)).await
    }

    /// Every name under the store, with a file's bytes.
    fn look(&self) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
        let (mut seen, mut todo) = (BTreeMap::new(), vec![self.path("")]);
        while let Some(directory) = todo.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(self.path("")).unwrap().to_owned();
                if path.is_dir() {
                    seen.insert(name, None);
                    todo.push(path);
                } else {
                    seen.insert(name, Some(fs::read(path).unwrap()));
                }
            }
        }
        seen
    }

    fn sync_names(&self) {
        self.engine.sync_directory(&self.path("")).unwrap();
    }
}

#[tokio::test]
async fn unsynced_blocks_are_lost_each_for_itself_and_synced_ones_never() {
    let (old, new) = (pattern(40_000, 1), pattern(40_000, 2));
    let (mut all_kept, mut all_lost, mut mixed) = (0, 0, 0);
    for seed in 0..40 {
        let on = setup();
        let file = on.engine.create(&on.path("blob"), 80_000).unwrap();
        on.write(&file, 0, &old).await.unwrap();
        on.write(&file, 40_000, &old).await.unwrap();
        on.engine.sync(&file).unwrap();
        on.sync_names();
        on.write(&file, 0, &new).await.unwrap();
        on.engine.power_cut(seed).unwrap();

        let bytes = fs::read(on.path("blob")).unwrap();
        assert!(bytes[40_960..] == old[960..], "seed {seed}: what was synced is there");
        let blocks = bytes[..40_000].chunks(4096).zip(old.chunks(4096).zip(new.chunks(4096)));
        let kept: Vec<_> = blocks
            .map(|(now, (old, new))| {
                assert!(now == old || now == new, "seed {seed}: a block is old or new");
                now == new
            })
            .collect();
        match kept.iter().filter(|kept| **kept).count() {
            0 => all_lost += 1,
            count if count == kept.len() => all_kept += 1,
            _ => mixed += 1,
        }
    }
    assert!(all_kept > 0 && all_lost > 0 && mixed > 0, "{all_kept} kept, {all_lost} lost, {mixed} mixed");
}

#[tokio::test]
async fn a_synced_file_needs_its_name_synced_too() {
    let (mut there, mut gone) = (0, 0);
    for seed in 0..40 {
        let on = setup();
        let file = on.engine.create(&on.path("blob"), 5).unwrap();
        on.write(&file, 0, b"bytes").await.unwrap();
        on.engine.sync(&file).unwrap();
        on.engine.power_cut(seed).unwrap();
        match fs::read(on.path("blob")) {
            Ok(bytes) => {
                assert_eq!(bytes, b"bytes");
                there += 1;
            }
            Err(_) => gone += 1,
        }
    }
    assert!(there > 0 && gone > 0, "{there} there, {gone} gone");
}

#[tokio::test]
async fn a_synced_name_does_not_sync_its_file() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..60 {
        let on = setup();
        let file = on.engine.create(&on.path("blob"), 5).unwrap();
        on.write(&file, 0, b"bytes").await.unwrap();
        on.sync_names();
        on.engine.power_cut(seed).unwrap();
        seen.insert(fs::read(on.path("blob")).unwrap());
    }
    let possible = [vec![], vec![0; 5], b"bytes".to_vec()];
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), possible);
}

#[tokio::test]
async fn sync_all_keeps_everything() {
    for seed in 0..20 {
        let on = setup();
        let file = on.engine.create(&on.path("blob"), 9000).unwrap();
        on.write(&file, 0, &pattern(9000, 3)).await.unwrap();
        on.engine.create_directories(&on.path("a/b")).unwrap();
        on.engine.write_whole(&on.path("a/b/manifest"), b"first", false).unwrap();
        on.engine.write_whole(&on.path("a/b/manifest"), b"second", false).unwrap();
        on.engine.link(&on.path("blob"), &on.path("a/linked")).unwrap();
        on.engine.remove(&on.path("blob")).unwrap();
        let before = on.look();
        on.engine.sync_all(&on.path("")).unwrap();
        assert_eq!(on.engine.power_cut(seed).unwrap(), Losses::default());
        assert!(on.look() == before);
    }
}

/// What each number of the operations below leaves, when all before it are kept and all after it lost.
fn a_history(on: &Setup, operations: usize) {
    let steps: [&dyn Fn() -> io::Result<()>; 9] = [
        &|| on.engine.write_whole(&on.path("one"), b"1", true),
        &|| on.engine.link(&on.path("one"), &on.path("two")),
        &|| on.engine.remove(&on.path("one")),
        &|| on.engine.remove(&on.path("two")),
        &|| on.engine.create_directories(&on.path("directory")),
        &|| on.engine.write_whole(&on.path("kept"), b"new", true),
        &|| on.engine.rename(&on.path("kept"), &on.path("moved")),
        &|| on.engine.rename(&on.path("directory"), &on.path("directory 2")),
        &|| on.engine.remove_tree(&on.path("directory 2")),
    ];
    for step in &steps[..operations] {
        step().unwrap();
    }
}

/// In one directory what survives is always a moment that was, up to the temporary files of `write_whole`.
#[test]
fn names_of_one_directory_survive_up_to_a_moment() {
    let start = || {
        let on = setup();
        on.engine.write_whole(&on.path("kept"), b"old", true).unwrap();
        on.sync_names();
        on
    };
    let moments: Vec<_> = (0..=9)
        .map(|operations| {
            let on = start();
            a_history(&on, operations);
            on.look()
        })
        .collect();
    let mut seen = [false; 10];
    for seed in 0..200 {
        let on = start();
        a_history(&on, 9);
        on.engine.power_cut(seed).unwrap();
        let mut now = on.look();
        now.retain(|name, _| !name.to_string_lossy().ends_with(plain::TEMPORARY_SUFFIX));
        let moment = moments.iter().position(|moment| *moment == now);
        seen[moment.unwrap_or_else(|| panic!("seed {seed}: {now:?} never was"))] = true;
    }
    // Before and after `rename` of something that is moved on again look alike; all else must have come.
    assert!(seen.iter().filter(|seen| **seen).count() >= 8, "{seen:?}");
}

#[test]
fn a_rename_between_directories_survives_in_both_or_in_none() {
    for seed in 0..60 {
        let on = setup();
        on.engine.create_directories(&on.path("a")).unwrap();
        on.engine.create_directories(&on.path("b")).unwrap();
        on.engine.write_whole(&on.path("a/file"), b"bytes", true).unwrap();
        on.engine.write_whole(&on.path("b/file"), b"replaced", true).unwrap();
        on.engine.sync_all(&on.path("")).unwrap();
        on.engine.write_whole(&on.path("a/before"), b"", true).unwrap();
        on.engine.rename(&on.path("a/file"), &on.path("b/file")).unwrap();
        on.engine.rename(&on.path("b"), &on.path("c")).unwrap();
        if seed % 2 == 0 {
            on.engine.sync_directory(&on.path("c")).unwrap();
        }
        on.engine.power_cut(seed).unwrap();
        let b = if on.path("b").exists() { "b" } else { "c" };
        let moved = !on.path("a/file").exists();
        let expected: &[u8] = if moved { b"bytes" } else { b"replaced" };
        assert_eq!(fs::read(on.path(b).join("file")).unwrap(), expected, "seed {seed}");
        assert!(seed % 2 == 1 || moved, "seed {seed}: a synced rename was lost");
        assert!(!moved || on.path("a/before").exists(), "seed {seed}: an earlier change went first");
    }
}

#[test]
fn link_counts_are_those_of_real_life() {
    let on = setup();
    on.engine.write_whole(&on.path("one"), b"1", true).unwrap();
    on.engine.link(&on.path("one"), &on.path("two")).unwrap();
    on.engine.remove(&on.path("one")).unwrap();
    assert_eq!(fs::metadata(on.path("two")).unwrap().nlink(), 1);
}

#[tokio::test]
async fn a_seed_decides() {
    let outcome = async |seed| {
        let on = setup();
        for name in ["a", "b", "c", "d", "e", "f"] {
            let file = on.engine.create(&on.path(name), 20_000).unwrap();
            on.write(&file, 0, &pattern(20_000, 5)).await.unwrap();
        }
        on.engine.power_cut(seed).unwrap();
        on.look()
    };
    assert!(outcome(7).await == outcome(7).await);
    let mut different = false;
    for seed in 8..20 {
        different |= outcome(seed).await != outcome(7).await;
    }
    assert!(different);
}

#[tokio::test]
async fn nothing_works_after_the_cut() {
    let on = setup();
    let file = on.engine.create(&on.path("blob"), 5).unwrap();
    let backend = on.engine.index_backend(&on.path("index")).unwrap();
    on.engine.power_cut(1).unwrap();
    assert!(on.engine.is_cut());
    assert!(on.write(&file, 0, b"x").await.is_err());
    assert!(on.engine.read(&file, 0, 1, on.pool.acquire().await).await.1.is_err());
    assert!(on.engine.create(&on.path("new"), 1).is_err());
    assert!(on.engine.sync(&file).is_err());
    assert!(on.engine.sync_all(&on.path("")).is_err());
    assert!(backend.write(0, b"x").is_err() && backend.sync_data().is_err() && backend.len().is_err());
    assert!(on.engine.power_cut(1).is_err());
    assert_eq!(on.pool.in_use(), 0);
    assert!(!on.path("new").exists());
}

#[test]
fn a_planned_cut_comes_after_its_operation() {
    let on = setup();
    let before = on.engine.operations();
    on.engine.write_whole(&on.path("one"), b"1", true).unwrap();
    assert_eq!(on.engine.operations(), before + 1);
    on.engine.cut_power_after(2, 1);
    on.engine.write_whole(&on.path("two"), b"2", true).unwrap();
    assert!(on.engine.sync_directory(&on.path("")).is_err(), "done, but nobody hears of it");
    assert!(on.engine.is_cut());
    assert_eq!(on.look().len(), 2);
}

#[tokio::test]
async fn writes_fail_when_told_to_and_heal() {
    let on = setup();
    let file = on.engine.create(&on.path("blob"), 100).unwrap();
    on.engine.fail_writes_with(io::ErrorKind::StorageFull, 6);
    on.write(&file, 0, b"four").await.unwrap();
    assert_eq!(on.write(&file, 4, b"five!").await.unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(on.write(&file, 4, b"x").await.unwrap_err().raw_os_error(), Some(28));
    assert_eq!(fs::read(on.path("blob")).unwrap()[..8], *b"fourfi\0\0");
    assert!(on.engine.write_whole(&on.path("small"), b"x", true).is_err());
    assert_eq!(on.look().len(), 1, "the temporary file is gone");
    on.engine.heal();
    on.write(&file, 4, b"five!").await.unwrap();
}
