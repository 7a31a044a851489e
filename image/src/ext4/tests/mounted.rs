//! The kernel's word.

use super::*;

/// A mount that ends with the test, whatever happens.
struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.0).status().is_ok_and(|status| status.success());
        if !unmounted {
            let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
}

/// `None` where it may not be done, or there is no loop device.
fn mount(disk: &Path, at: &Path) -> Option<Mount> {
    fs::create_dir(at).unwrap();
    let output =
        Command::new("mount").args(["-t", "ext4", "-o", "ro,loop"]).arg(disk).arg(at).output().ok()?;
    if output.status.success() {
        return Some(Mount(at.to_owned()));
    }
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    eprintln!("not mounted: {words}");
    let is_not_allowed =
        ["permission", "not permitted", "superuser", "loop device"].iter().any(|word| words.contains(word));
    assert!(is_not_allowed, "{words}");
    None
}

#[test]
fn the_kernel_reads_what_was_written() {
    let (builder, files) = small_tree(20);
    let (folder, path, disk, _) = finish(builder);
    write_contents(&disk, &files);
    let Some(mount) = mount(&path, &folder.path().join("mounted")) else { return };
    for (name, _, bytes) in &files {
        assert!(fs::read(mount.0.join(name)).unwrap() == *bytes, "{name}");
    }
    assert_eq!(fs::read_dir(&mount.0).unwrap().count(), 8);
    eprintln!("mounted and compared");
}

#[test]
fn the_kernel_finds_the_end_of_a_large_file() {
    let bytes = 300_000_000_001;
    let mut builder = Builder::create(&format(320 * GIB, 10, reserve(0, 1, [bytes]))).unwrap();
    let at = builder.data_start();
    builder.file(builder.root(), "large", 0o644, bytes, at).unwrap();
    let (folder, path, disk, _) = finish(builder);
    let places = [0, 1 << 27, 170 * GIB + 4096, bytes - 5];
    for place in places {
        disk.write_all_at(b"there", at + place).unwrap();
    }
    let Some(mount) = mount(&path, &folder.path().join("mounted")) else { return };
    let file = File::open(mount.0.join("large")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), bytes);
    for place in places {
        let mut bytes = [0; 5];
        file.read_exact_at(&mut bytes, place).unwrap();
        assert_eq!(&bytes, b"there");
    }
    eprintln!("mounted and compared");
}
