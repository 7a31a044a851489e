//! What is made passes `e2fsck` and mounts; what is read may be anything.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use tempfile::TempDir;

use super::{builder::Metadata, *};

const GIB: u64 = 1 << 30;

fn format(disk_bytes: u64, inodes: u64, reserved_blocks: u64) -> Format {
    Format {
        disk_bytes,
        inodes,
        reserved_blocks,
        label: "weights".to_owned(),
        uuid: *b"0123456789abcdef",
        hash_seed: *b"fedcba9876543210",
        time: 1_700_000_000,
    }
}

/// Contents that differ from file to file.
fn contents(seed: u64, bytes: u64) -> Vec<u8> {
    (0..bytes).map(|i| u8::try_from((i / 7 + i * 13 + seed * 31) % 251).unwrap()).collect()
}

/// The metadata as a disk: a sparse file.
fn write_disk(metadata: &Metadata, path: &Path) -> File {
    let disk = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    disk.set_len(metadata.file.metadata().unwrap().len()).unwrap();
    for range in &metadata.ranges {
        assert!(range.end <= metadata.data_start, "metadata at {range:?}");
        let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap()];
        metadata.file.read_exact_at(&mut bytes, range.start).unwrap();
        disk.write_all_at(&bytes, range.start).unwrap();
    }
    disk
}

fn metadata_bytes(metadata: &Metadata) -> u64 {
    metadata.ranges.iter().map(|range| range.end - range.start).sum()
}

/// Fails the test unless e2fsck finds nothing at all.
fn assert_sound(path: &Path) {
    let output = Command::new("e2fsck").arg("-fn").arg(path).output().unwrap();
    let words = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{words}");
    let is_of_pass = |line: &&str| !line.starts_with("Pass ") && !line.is_empty();
    let others: Vec<_> = words.lines().filter(is_of_pass).collect();
    assert_eq!(others.len(), 1, "{words}");
    assert!(others[0].starts_with("weights: ") && others[0].contains(" files ("), "{words}");
}

fn finish(builder: Builder) -> (TempDir, PathBuf, File, Metadata) {
    let metadata = builder.finish().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let disk = write_disk(&metadata, &path);
    (folder, path, disk, metadata)
}

#[test]
fn an_empty_tree_is_sound() {
    for disk_bytes in [8 << 20, 128 << 20, GIB, 100 * GIB, 128 * 1024 * 1024 + 4096] {
        let builder = Builder::create(&format(disk_bytes, 100, reserve(0, 0, []))).unwrap();
        let (_folder, path, _, metadata) = finish(builder);
        assert_sound(&path);
        eprintln!(
            "{disk_bytes} bytes: {} of metadata, contents from {} to {}",
            metadata_bytes(&metadata),
            metadata.data_start,
            metadata.data_end
        );
        let fs = FileSystem::open(&path).unwrap();
        assert_eq!((fs.label(), fs.uuid()), ("weights", *b"0123456789abcdef"));
        assert_eq!(fs.disk_bytes(), metadata.data_end);
        assert_eq!(fs.entries().unwrap(), []);
    }
}

/// Files of all lengths where a block ends, in nested directories, with further links.
fn small_tree(inodes: u64) -> (Builder, Vec<(String, u64, Vec<u8>)>) {
    let mut builder = Builder::create(&format(256 << 20, inodes, reserve(2, 20, []))).unwrap();
    let (root, mut at) = (builder.root(), builder.data_start());
    let folder = builder.directory(root, "models", 0o755).unwrap();
    let inner = builder.directory(folder, "ünïcode and spaces", 0o750).unwrap();
    let mut files = Vec::new();
    for (seed, bytes) in [0, 1, 4095, 4096, 4097, 3 << 20].into_iter().enumerate() {
        let name = format!("file-{bytes}");
        let inode = builder.file(inner, &name, 0o644, bytes, at).unwrap();
        builder.link(root, &format!("link-{bytes}"), inode).unwrap();
        for name in [format!("models/ünïcode and spaces/{name}"), format!("link-{bytes}")] {
            files.push((name, at, contents(seed as u64, bytes)));
        }
        at += bytes.next_multiple_of(BLOCK_BYTES);
    }
    (builder, files)
}

fn write_contents(disk: &File, files: &[(String, u64, Vec<u8>)]) {
    for (_, at, bytes) in files {
        disk.write_all_at(bytes, *at).unwrap();
    }
}

#[test]
fn a_small_tree_is_sound_and_reads_back() {
    let (builder, files) = small_tree(20);
    let (_folder, path, disk, metadata) = finish(builder);
    write_contents(&disk, &files);
    assert_sound(&path);
    let fs = FileSystem::open(&path).unwrap();
    let entries = fs.entries().unwrap();
    let names: Vec<_> = entries.iter().map(|entry| entry.path.to_str().unwrap().to_owned()).collect();
    assert_eq!(names[0], "models");
    assert_eq!(names.len(), files.len() + 2);
    assert_eq!((entries[0].kind, entries[0].links, entries[0].mode), (Kind::Directory, 3, 0o040_755));
    for (name, at, bytes) in &files {
        let entry = entries.iter().find(|entry| entry.path.to_str() == Some(name)).unwrap();
        assert_eq!((entry.kind, entry.links, entry.mode), (Kind::File, 2, 0o100_644));
        assert_eq!(entry.bytes, bytes.len() as u64);
        assert_eq!(fs.read(entry.inode, 4 << 20).unwrap(), *bytes);
        let piece = Extent { logical: 0, bytes: entry.bytes, place: Place::Disk(*at) };
        let pieces = if bytes.is_empty() { vec![] } else { vec![piece] };
        assert_eq!(fs.extents(entry.inode).unwrap(), pieces);
        if bytes.len() > 4096 {
            assert!(matches!(fs.read(entry.inode, 4096), Err(Ext4Error::TooLong { .. })));
        }
    }
    assert!(metadata.ranges.iter().all(|range| range.end <= metadata.data_start));
}

#[test]
fn ten_thousand_files_in_a_directory_take_no_time() {
    let start = Instant::now();
    let names: Vec<_> = (0..10_000).map(|i| format!("{i:0>200}")).collect();
    let mut builder = Builder::create(&format(GIB, 10_001, reserve(1, 10_001, []))).unwrap();
    let folder = builder.directory(builder.root(), "many", 0o755).unwrap();
    let first = builder.data_start();
    for (name, i) in names.iter().zip(0..) {
        builder.file(folder, name, 0o644, 4096, first + i * 4096).unwrap();
    }
    let (_folder, path, _, metadata) = finish(builder);
    eprintln!("10,000 files: {:?}, {} bytes of metadata", start.elapsed(), metadata_bytes(&metadata));
    assert!(start.elapsed().as_secs() < 5);
    assert_sound(&path);
    let start = Instant::now();
    let entries = FileSystem::open(&path).unwrap().entries().unwrap();
    eprintln!("listed in {:?}", start.elapsed());
    let listed: Vec<_> =
        entries[1..].iter().map(|entry| entry.path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(listed, names);
}

#[test]
fn a_file_of_300_gb_is_sound() {
    let start = Instant::now();
    let bytes = 300_000_000_001;
    let reserved = reserve(0, 2, [bytes, 200 * GIB / 1000]);
    let mut builder = Builder::create(&format(320 * GIB, 10, reserved)).unwrap();
    let at = builder.data_start();
    let file = builder.file(builder.root(), "large", 0o644, bytes, at).unwrap();
    let (_folder, path, _, metadata) = finish(builder);
    eprintln!("300 GB: {:?}, {} bytes of metadata", start.elapsed(), metadata_bytes(&metadata));
    assert_sound(&path);
    let fs = FileSystem::open(&path).unwrap();
    assert_eq!(fs.extents(file).unwrap(), [Extent { logical: 0, bytes, place: Place::Disk(at) }]);
}

#[test]
fn a_disk_beyond_16_tib_is_sound() {
    let disk_bytes = 20 << 40;
    let bytes = 2 << 40;
    let start = Instant::now();
    let mut builder = Builder::create(&format(disk_bytes, 10, reserve(0, 1, [bytes]))).unwrap();
    let at = builder.data_end() - bytes;
    let file = builder.file(builder.root(), "far", 0o644, bytes, at).unwrap();
    let metadata = builder.finish().unwrap();
    eprintln!("20 TiB: {:?}, {} bytes of metadata", start.elapsed(), metadata_bytes(&metadata));
    let fs = FileSystem::open(&memory_path(&metadata)).unwrap();
    assert_eq!(fs.extents(file).unwrap(), [Extent { logical: 0, bytes, place: Place::Disk(at) }]);
    assert_sound(&memory_path(&metadata));
}

fn memory_path(metadata: &Metadata) -> PathBuf {
    use std::os::fd::AsRawFd;
    format!("/proc/{}/fd/{}", std::process::id(), metadata.file.as_raw_fd()).into()
}

#[test]
fn the_reserve_suffices_for_the_longest_names() {
    let names: Vec<_> = (0..100).map(|i| format!("{i:0>255}")).collect();
    let reserved = reserve(2, 200, [600 << 20]);
    let mut builder = Builder::create(&format(2 * GIB, 200, reserved)).unwrap();
    let root = builder.root();
    let (one, two) =
        (builder.directory(root, "1", 0o755).unwrap(), builder.directory(root, "2", 0o755).unwrap());
    let at = builder.data_start();
    builder.file(one, "big", 0o644, 600 << 20, at).unwrap();
    for name in &names[..99] {
        builder.file(one, name, 0o644, 0, 0).unwrap();
        builder.directory(two, name, 0o755).map(drop).unwrap_or(());
    }
    // The directories within the second one were not reserved for.
    assert!(
        matches!(builder.finish(), Err(Ext4Error::ReserveFull { reserved_blocks, .. }) if reserved_blocks == reserved)
    );
    let mut builder = Builder::create(&format(2 * GIB, 200, reserve(2, 200, [600 << 20]))).unwrap();
    let (one, two) =
        (builder.directory(root, "1", 0o755).unwrap(), builder.directory(root, "2", 0o755).unwrap());
    let at = builder.data_start();
    builder.file(one, "big", 0o644, 600 << 20, at).unwrap();
    for name in &names[..99] {
        let file = builder.file(one, name, 0o644, 0, 0).unwrap();
        builder.link(two, name, file).unwrap();
    }
    let (_folder, path, ..) = finish(builder);
    assert_sound(&path);
}

#[test]
fn many_directories_in_one_are_sound() {
    let mut builder = Builder::create(&format(4 * GIB, 66_000, reserve(66_000, 66_000, []))).unwrap();
    for i in 0..66_000 {
        builder.directory(builder.root(), &format!("{i}"), 0o755).unwrap();
    }
    let (_folder, path, ..) = finish(builder);
    assert_sound(&path);
    assert_eq!(FileSystem::open(&path).unwrap().entries().unwrap().len(), 66_000);
}

#[test]
#[allow(clippy::disallowed_methods, reason = "the library would look at the real clock")]
fn the_same_calls_make_the_same_bytes() {
    let bytes = || {
        let metadata = small_tree(20).0.finish().unwrap();
        let mut bytes = vec![0; usize::try_from(metadata.data_start).unwrap()];
        metadata.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    let before = bytes();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert!(before == bytes());
    // Nothing of the day: no second of this decade but the given one.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let is_recent = |word: &[u8]| {
        let word = u64::from(u32::from_le_bytes(word.try_into().unwrap()));
        word.abs_diff(now) < 86_400
    };
    assert!(!before[1024..2048].chunks_exact(4).any(is_recent));
}

#[test]
fn what_cannot_be_is_refused() {
    let create = |change: fn(&mut Format)| {
        let mut format = format(256 << 20, 20, 10);
        change(&mut format);
        Builder::create(&format)
    };
    for change in [
        (|format| format.disk_bytes = 0) as fn(&mut Format),
        |format| format.disk_bytes = 8192,
        |format| format.disk_bytes = u64::MAX,
        |format| format.inodes = 10_000_000,
        |format| format.inodes = u64::MAX,
        |format| format.reserved_blocks = u64::MAX,
        |format| format.reserved_blocks = 65_530,
        |format| format.label = "seventeen letters".to_owned(),
        |format| format.uuid = [0; 16],
        |format| format.time = 0,
    ] {
        let refused = create(change);
        assert!(matches!(refused, Err(Ext4Error::Format(_))), "{refused:?}");
    }
    let (mut builder, files) = small_tree(20);
    let root = builder.root();
    let at = builder.data_end() - 4096;
    let is_refused = |result: Result<Inode, Ext4Error>| {
        assert!(matches!(result, Err(Ext4Error::Refused { .. })), "{result:?}");
    };
    for name in ["", ".", "..", "a/b", "a\0b", "models", "link-1", "lost+found", &"x".repeat(256)] {
        is_refused(builder.directory(root, name, 0o755));
        is_refused(builder.file(root, name, 0o644, 1, at));
        is_refused(builder.link(root, name, Inode(14)).map(|()| root));
    }
    let taken = files[2].1;
    for at in [0, taken, at + 1, at + 4096, u64::MAX, u64::MAX - 4095] {
        is_refused(builder.file(root, "new", 0o644, 1, at));
    }
    is_refused(builder.file(Inode(14), "new", 0o644, 1, at));
    is_refused(builder.file(root, "new", 0o644, u64::MAX, at));
    is_refused(builder.link(root, "new", root).map(|()| root));
    is_refused(builder.link(root, "new", Inode(99)).map(|()| root));
    builder.file(root, "new", 0o644, 1, at).unwrap();
    let last = loop {
        let name = format!("{}", builder.data_end() + u64::from(rand()));
        match builder.file(root, &name, 0o644, 0, 0) {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(last.to_string().ends_with("there are no more inodes than the format asked for"), "{last}");
}

/// Numbers that do not repeat.
fn rand() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[test]
fn times_after_2038_are_what_they_are() {
    let mut format = format(64 << 20, 10, 10);
    format.time = 3_000_000_000;
    let (_folder, path, ..) = finish(Builder::create(&format).unwrap());
    // Not e2fsck, which would say that it is in the future.
    let output =
        Command::new("debugfs").arg("-R").arg("stat <2>").arg(&path).env("TZ", "UTC").output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("2065"), "{output:?}");
}

#[test]
fn a_disk_has_room_for_what_it_was_measured_for() {
    for (data, inodes, reserved) in
        [(0, 0, 2), (1, 5, 3), (127 << 20, 100, 3), (GIB, 100_000, 9000), (300 * GIB, 1000, 50)]
    {
        let bytes = disk_bytes(data, inodes, reserved);
        let builder = Builder::create(&format(bytes, inodes, reserved)).unwrap();
        let room = builder.data_end() - builder.data_start();
        assert!(builder.data_end() == bytes && room >= data, "{room} for {data}");
        assert!(bytes == 128 << 20 || room < data + data / 100 + (256 << 20), "{room} for {data}");
    }
}

mod hostile;
mod mounted;
