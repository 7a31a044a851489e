//! A file system that runs out of room: a small ext4 on a loop device.

use std::{path::PathBuf, process::Command};

use weightd_types::CHUNK_BYTES;

use super::*;

/// A mounted ext4 of 32 MiB.
struct SmallDisk {
    mounted_at: PathBuf,
}

impl SmallDisk {
    /// Needs root and loop devices; says why otherwise.
    fn mount(under: &Path) -> Result<Self, String> {
        let (image, mounted_at) = (under.join("small.img"), under.join("small"));
        std::fs::File::create(&image).and_then(|file| file.set_len(32 << 20)).map_err(|e| e.to_string())?;
        std::fs::create_dir(&mounted_at).map_err(|error| error.to_string())?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mounted_at))?;
        Ok(Self { mounted_at })
    }
}

impl Drop for SmallDisk {
    /// Lazily, because a test that fails still holds files there, and must not leave a mount behind.
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("umount").arg("--lazy").arg(&self.mounted_at)) {
            eprintln!("{} stays mounted: {error}", self.mounted_at.display());
        }
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)))
}

pub(super) async fn no_room_to_create_leaves_nothing(on: Fixture) {
    let disk = match SmallDisk::mount(on.directory.path()) {
        Ok(disk) => disk,
        Err(reason) => return skip("no_room_to_create_leaves_nothing", &reason),
    };
    let path = disk.mounted_at.join("blob");
    let error = on.engine.create(&path, 1 << 30).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(!path.exists());
    // What does fit still works there, and what was allocated can be written however full the rest gets.
    let file = on.engine.create(&path, CHUNK_BYTES).unwrap();
    let filler = disk.mounted_at.join("filler");
    assert_eq!(std::fs::write(&filler, vec![1; 64 << 20]).unwrap_err().kind(), io::ErrorKind::StorageFull);
    let bytes = pattern(Buffer::CAPACITY, 1);
    on.write(&file, 0, &bytes).await.unwrap();
    on.engine.sync(&file).unwrap();
    assert!(on.read(&file, 0, Buffer::CAPACITY).await.unwrap() == bytes);
    drop(file);
}

pub(super) async fn no_room_to_write_is_storage_full(on: Fixture) {
    let disk = match SmallDisk::mount(on.directory.path()) {
        Ok(disk) => disk,
        Err(reason) => return skip("no_room_to_write_is_storage_full", &reason),
    };
    let path = disk.mounted_at.join("sparse");
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
