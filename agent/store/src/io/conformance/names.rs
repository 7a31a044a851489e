//! Files and directories.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use redb::{Database, ReadableDatabase, TableDefinition};

use super::*;

pub(super) async fn creating_allocates_and_never_overwrites(on: Fixture) {
    let path = on.path("blob");
    let file = on.engine.create(&path, 1_000_003).unwrap();
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!((metadata.len(), file.len()), (1_000_003, 1_000_003));
    assert!(metadata.blocks() * 512 >= 1_000_003, "extents are allocated: {} sectors", metadata.blocks());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    assert_eq!(on.read(&file, 4096, 5000).await.unwrap(), [0; 5000]);

    on.write(&file, 0, b"kept").await.unwrap();
    assert_eq!(on.engine.create(&path, 5).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(on.read(&file, 0, 4).await.unwrap(), b"kept");
}

pub(super) async fn opening_what_is_missing_fails(on: Fixture) {
    for access in [Access::Read, Access::Write] {
        let error = on.engine.open(&on.path("missing"), access).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
    assert!(on.engine.create(&on.path("missing/blob"), 1).is_err());
}

/// A reader at any moment sees one version or the other, whole.
pub(super) async fn small_files_are_replaced_whole(on: Fixture) {
    let path = on.path("manifest");
    let versions: Vec<_> = (0..2u8).map(|version| vec![version; 30_000]).collect();
    on.engine.write_whole(&path, &versions[0], true).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                assert!(versions.contains(&std::fs::read(&path).unwrap()), "a reader saw a mixture");
            }
        });
        for round in 0..100 {
            on.engine.write_whole(&path, &versions[round % 2], false).unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        reader.join().unwrap();
    });
    let names: Vec<_> =
        std::fs::read_dir(on.directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["manifest"], "no temporary file stays");
    assert!(on.engine.write_whole(&on.path("missing/manifest"), b"x", true).is_err());
}

pub(super) async fn links_renames_and_removals(on: Fixture) {
    let (old, new, linked) = (on.path("old"), on.path("new"), on.path("linked"));
    on.engine.write_whole(&old, b"one", true).unwrap();
    on.engine.link(&old, &linked).unwrap();
    let inode = |path: &Path| std::fs::metadata(path).unwrap().ino();
    assert_eq!(inode(&old), inode(&linked));
    assert_eq!(on.engine.link(&old, &linked).unwrap_err().kind(), io::ErrorKind::AlreadyExists);

    on.engine.write_whole(&new, b"two", true).unwrap();
    on.engine.rename(&old, &new).unwrap();
    assert!(!old.exists());
    assert_eq!(std::fs::read(&new).unwrap(), b"one");
    assert_eq!(on.engine.rename(&old, &new).unwrap_err().kind(), io::ErrorKind::NotFound);

    on.engine.remove(&new).unwrap();
    on.engine.remove(&new).unwrap();
    assert!(!new.exists());
    assert_eq!(std::fs::read(&linked).unwrap(), b"one");
}

pub(super) async fn trees_come_and_go(on: Fixture) {
    let deep = on.path("a/b/c");
    on.engine.create_directories(&deep).unwrap();
    on.engine.create_directories(&deep).unwrap();
    on.engine.write_whole(&deep.join("file"), b"x", false).unwrap();
    on.engine.rename(&on.path("a"), &on.path("moved")).unwrap();
    assert_eq!(std::fs::read(on.path("moved/b/c/file")).unwrap(), b"x");
    on.engine.remove_tree(&on.path("moved")).unwrap();
    on.engine.remove_tree(&on.path("moved")).unwrap();
    assert!(std::fs::read_dir(on.directory.path()).unwrap().next().is_none());
}

pub(super) async fn syncs_succeed(on: Fixture) {
    let file = on.engine.create(&on.path("blob"), 5000).unwrap();
    on.write(&file, 0, &pattern(5000, 1)).await.unwrap();
    on.engine.sync(&file).unwrap();
    on.engine.sync_directory(on.directory.path()).unwrap();
    on.engine.sync_all(on.directory.path()).unwrap();
    assert!(on.engine.sync_directory(&on.path("missing")).is_err());
}

pub(super) async fn the_index_keeps_its_tables(on: Fixture) {
    const TABLE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("table");
    let path = on.path("index");
    for round in 0..3u64 {
        let backend = IndexBackend(on.engine.index_backend(&path).unwrap());
        let database = Database::builder().create_with_backend(backend).unwrap();
        let write = database.begin_write().unwrap();
        write.open_table(TABLE).unwrap().insert(round, [7u8; 3000].as_slice()).unwrap();
        write.commit().unwrap();
        let read = database.begin_read().unwrap();
        let table = read.open_table(TABLE).unwrap();
        assert!((0..=round).all(|key| table.get(key).unwrap().unwrap().value() == [7; 3000]));
    }
}
