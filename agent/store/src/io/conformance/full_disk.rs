//! A file system that runs out of room: a small ext4 on a loop device.

use weightd_harness::SmallDisk;
use weightd_types::CHUNK_BYTES;

use super::*;

const DISK_BYTES: u64 = 32 << 20;

pub(super) async fn no_room_to_create_leaves_nothing(on: Fixture) {
    let Some(disk) = SmallDisk::mount(on.directory.path(), DISK_BYTES) else { return };
    let path = disk.path().join("blob");
    let error = on.engine.create(&path, 1 << 30).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(!path.exists());
    // What does fit still works there, and what was allocated can be written however full the rest gets.
    let file = on.engine.create(&path, CHUNK_BYTES).unwrap();
    let filler = disk.path().join("filler");
    assert_eq!(std::fs::write(&filler, vec![1; 64 << 20]).unwrap_err().kind(), io::ErrorKind::StorageFull);
    let bytes = pattern(Buffer::CAPACITY, 1);
    on.write(&file, 0, &bytes).await.unwrap();
    on.engine.sync(&file).unwrap();
    assert!(on.read(&file, 0, Buffer::CAPACITY).await.unwrap() == bytes);
    drop(file);
}

pub(super) async fn no_room_to_write_is_storage_full(on: Fixture) {
    let Some(disk) = SmallDisk::mount(on.directory.path(), DISK_BYTES) else { return };
    let path = disk.path().join("sparse");
    std::fs::File::create(&path).unwrap().set_len(8 * CHUNK_BYTES).unwrap();
    let file = on.engine.open(&path, Access::Write).unwrap();
    let mut outcome = Ok(());
    for chunk in 0..8 {
        outcome = on.write(&file, chunk * CHUNK_BYTES, &pattern(Buffer::CAPACITY, chunk)).await;
        if outcome.is_err() {
            break;
        }
    }
    assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::StorageFull);
    on.all_buffers_back().await;
    drop(file);
}
