//! Images that were cut, changed, made by others, or are none.

use super::*;

/// Everything that can be read of it.
fn read_all(path: &Path) -> Result<usize, Ext4Error> {
    let fs = FileSystem::open(path)?;
    fs.check_tables()?;
    let entries = fs.entries()?;
    for entry in &entries {
        if entry.kind == Kind::File {
            fs.extents(entry.inode)?;
            fs.read(entry.inode, 8 << 20)?;
        }
    }
    Ok(entries.len())
}

/// How often, where nobody asks for more.
fn rounds(usual: usize) -> usize {
    std::env::var("EXT4_ROUNDS").map_or(usual, |rounds| rounds.parse().unwrap())
}

/// The next of a row of numbers that looks like chance (xorshift).
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn what_is_no_file_system_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none");
    assert!(matches!(FileSystem::open(&path), Err(Ext4Error::Failed { .. })));
    assert!(FileSystem::open(folder.path()).is_err());
    assert!(FileSystem::open(Path::new("/dev/null")).is_err());
    let mut state = 1;
    for bytes in [0, 1, 1023, 1024, 2047, 2048, 100_000] {
        let noise: Vec<_> = (0..bytes).map(|_| next(&mut state).to_le_bytes()[0]).collect();
        fs::write(&path, noise).unwrap();
        let error = FileSystem::open(&path).unwrap_err();
        assert!(matches!(error, Ext4Error::Damaged { .. }), "{error}");
    }
}

#[test]
fn what_was_cut_is_an_error() {
    let (builder, files) = small_tree(20);
    let (_folder, path, disk, metadata) = finish(builder);
    write_contents(&disk, &files);
    assert_eq!(read_all(&path).unwrap(), files.len() + 2);
    for length in [metadata.data_end - 1, metadata.data_start, 8192, 4096, 2048, 2047, 1024, 0] {
        disk.set_len(length).unwrap();
        let error = FileSystem::open(&path).unwrap_err();
        assert!(error.to_string().contains("short"), "{error}");
    }
}

/// Where what lies in the metadata, of which a changed bit must be seen.
fn bits_that_matter(metadata: &Metadata) -> Vec<u64> {
    let mut bytes = vec![0; usize::try_from(metadata.data_start).unwrap()];
    metadata.file.read_exact_at(&mut bytes, 0).unwrap();
    let u32_at = |at: usize| u64::from(u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()));
    let table = u32_at(4096 + 8) * 4096;
    let reserve = metadata.data_start - 6 * 4096;
    let directories = [0, 1, 2, 3].map(|block| (reserve + block * 4096, 4096));
    let bitmaps = [0, 4].map(|at| (u32_at(4096 + at) * 4096, 4096));
    let own = (1..12).map(|inode| table + (inode - 1) * 256);
    let inodes = [12, 13, 14, 19].map(|inode| table + (inode - 1) * 256);
    let places = [(1024, 1024), (4096, 128)]
        .into_iter()
        .chain(bitmaps)
        .chain(directories)
        .chain(own.map(|at| (at, 256)))
        .chain(inodes.map(|at| (at, 160)));
    places.flat_map(|(at, length)| at * 8..(at + length) * 8).collect()
}

#[test]
fn each_changed_bit_is_seen() {
    let (builder, _) = small_tree(20);
    let (_folder, path, disk, metadata) = finish(builder);
    let count = read_all(&path).unwrap();
    let mut bits = bits_that_matter(&metadata);
    let all = bits.len();
    let mut state = 2;
    for _ in 0..rounds(3000).min(all) {
        let at = usize::try_from(next(&mut state)).unwrap() % bits.len();
        let bit = bits.swap_remove(at);
        let mut byte = [0];
        disk.read_exact_at(&mut byte, bit / 8).unwrap();
        disk.write_all_at(&[byte[0] ^ 1 << (bit % 8)], bit / 8).unwrap();
        let read = read_all(&path);
        assert!(read.is_err(), "byte {} of {all} bits changed and {read:?} of {count} entries read", bit / 8);
        disk.write_all_at(&byte, bit / 8).unwrap();
    }
    assert_eq!(read_all(&path).unwrap(), count);
}

fn mkfs(path: &Path, arguments: &[&str]) {
    File::create(path).unwrap().set_len(16 << 20).unwrap();
    let made = Command::new("mkfs.ext4").arg("-q").args(arguments).arg(path).output().unwrap();
    assert!(made.status.success(), "{made:?}");
}

fn debugfs(path: &Path, request: &str) {
    let done = Command::new("debugfs").args(["-w", "-R", request]).arg(path).output().unwrap();
    assert!(done.status.success(), "{done:?}");
}

/// A file system by `mkfs.ext4`, with a few files.
fn plain(folder: &Path, arguments: &[&str]) -> PathBuf {
    let (path, file) = (folder.join("plain"), folder.join("file"));
    let _ = fs::remove_file(&path);
    mkfs(&path, arguments);
    fs::write(&file, contents(1, 10_000)).unwrap();
    debugfs(&path, "mkdir folder");
    debugfs(&path, "symlink link folder");
    debugfs(&path, &format!("write {} folder/file", file.display()));
    path
}

#[test]
fn what_mkfs_makes_is_read() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in
        [&[][..], &["-b", "4096"], &["-O", "^metadata_csum,^64bit"], &["-b", "2048", "-I", "128"]]
    {
        let path = plain(folder.path(), arguments);
        let fs = FileSystem::open(&path).unwrap();
        fs.check_tables().unwrap();
        let entries = fs.entries().unwrap();
        let kinds: Vec<_> = entries.iter().map(|entry| (entry.path.to_str().unwrap(), entry.kind)).collect();
        let expected = [("folder", Kind::Directory), ("folder/file", Kind::File), ("link", Kind::Symlink)];
        assert_eq!(kinds, expected);
        assert_eq!(fs.read(entries[1].inode, 10_000).unwrap(), contents(1, 10_000));
    }
    let path = plain(folder.path(), &["-O", "^extents,^64bit"]);
    let error = FileSystem::open(&path).unwrap().entries().unwrap_err();
    assert!(matches!(error, Ext4Error::Unsupported { .. }), "{error}");
}

#[test]
fn holes_and_unwritten_pieces_are_said() {
    let folder = tempfile::tempdir().unwrap();
    let (path, file) = (folder.path().join("plain"), folder.path().join("file"));
    mkfs(&path, &["-b", "4096"]);
    let sparse = File::create(&file).unwrap();
    sparse.write_all_at(&contents(1, 4096), 8192).unwrap();
    sparse.set_len(20_000).unwrap();
    debugfs(&path, &format!("write {} file", file.display()));
    debugfs(&path, "fallocate file 3 3");
    let fs = FileSystem::open(&path).unwrap();
    let entry = fs.entries().unwrap().remove(0);
    let pieces = fs.extents(entry.inode).unwrap();
    let shape: Vec<_> = pieces.iter().map(|piece| (piece.logical, piece.bytes)).collect();
    assert_eq!(shape, [(0, 8192), (8192, 4096), (12_288, 4096), (16_384, 3616)]);
    assert_eq!(
        (pieces[0].place, pieces[2].place, pieces[3].place),
        (Place::Hole, Place::Unwritten, Place::Hole)
    );
    assert!(matches!(pieces[1].place, Place::Disk(_)));
    let mut expected = contents(1, 4096);
    expected.splice(0..0, vec![0; 8192]);
    expected.resize(20_000, 0);
    assert_eq!(fs.read(entry.inode, 20_000).unwrap(), expected);
}

#[test]
fn a_directory_in_itself_ends() {
    let folder = tempfile::tempdir().unwrap();
    let path = plain(folder.path(), &[]);
    debugfs(&path, "link / folder/up");
    let error = FileSystem::open(&path).unwrap().entries().unwrap_err();
    assert!(matches!(&error, Ext4Error::Damaged { object, .. } if object == "folder/up"), "{error}");
}

/// Nodes that each name the next one in all their entries, down to an empty leaf: 340⁴ ways to nothing.
#[test]
fn a_bush_of_extents_ends() {
    let folder = tempfile::tempdir().unwrap();
    let path = plain(folder.path(), &["-b", "4096", "-O", "^metadata_csum,^has_journal"]);
    let disk = File::options().read(true).write(true).open(&path).unwrap();
    let node = |entries: u16, max: u16, depth: u16, below: u32| {
        let header = [0xf30a, entries, max, depth, 0, 0].map(u16::to_le_bytes).concat();
        let entry = [0_u32, below, 0].map(u32::to_le_bytes).concat();
        [header, entry.repeat(entries.into())].concat()
    };
    let first = 3000;
    for (depth, block) in (0..5).rev().zip(first..) {
        let entries = if depth == 0 { 0 } else { 340 };
        disk.write_all_at(&node(entries, 340, depth, block + 1), u64::from(block) * 4096).unwrap();
    }
    let mut descriptor = [0; 12];
    disk.read_exact_at(&mut descriptor, 4096).unwrap();
    let table = u64::from(u32::from_le_bytes(descriptor[8..].try_into().unwrap())) * 4096;
    let inode = FileSystem::open(&path).unwrap().entries().unwrap()[1].inode;
    let place = table + (u64::from(inode.number()) - 1) * 256;
    disk.write_all_at(&node(4, 4, 5, first), place + 40).unwrap();
    disk.write_all_at(&u32::MAX.to_le_bytes(), place + 4).unwrap();
    let start = Instant::now();
    let error = FileSystem::open(&path).unwrap().extents(inode).unwrap_err();
    assert!(error.to_string().contains("too many nodes"), "{error}");
    assert!(start.elapsed().as_secs() < 5);
}

/// Without checksums everything that is changed is believed, until it contradicts itself.
#[test]
fn nothing_that_is_changed_crashes_or_hangs() {
    let folder = tempfile::tempdir().unwrap();
    let path =
        plain(folder.path(), &["-b", "1024", "-N", "64", "-O", "^metadata_csum,^has_journal,^resize_inode"]);
    let disk = File::options().read(true).write(true).open(&path).unwrap();
    let mut whole = vec![0; 16 << 20];
    disk.read_exact_at(&mut whole, 0).unwrap();
    // Blocks with something in them, the superblock and the descriptors among them.
    let used: Vec<_> = whole
        .chunks(1024)
        .zip(0..)
        .filter(|(block, _)| block.iter().any(|byte| *byte != 0))
        .map(|(_, i)| i)
        .collect();
    let (mut state, mut read) = (3, 0);
    let rounds = rounds(4000);
    for _ in 0..rounds {
        let mut changed = Vec::new();
        for _ in 0..1 + next(&mut state) % 4 {
            let block: u64 = used[usize::try_from(next(&mut state)).unwrap() % used.len()];
            // Early bytes of a block say more than late ones.
            let within = (next(&mut state) % 1024) & next(&mut state);
            let value = [0, 1, 0x7f, 0x80, 0xff, next(&mut state).to_le_bytes()[0]];
            let value = value[usize::try_from(next(&mut state) % 6).unwrap()];
            let width = 1 + next(&mut state) % 4;
            for at in block * 1024 + within..(block * 1024 + within + width).min(16 << 20) {
                changed.push(at);
                disk.write_all_at(&[value], at).unwrap();
            }
        }
        let start = Instant::now();
        read += usize::from(read_all(&path).is_ok());
        assert!(start.elapsed().as_secs() < 10, "{changed:?}");
        for at in changed {
            disk.write_all_at(&[whole[usize::try_from(at).unwrap()]], at).unwrap();
        }
    }
    eprintln!("{read} of {rounds} were read");
}
