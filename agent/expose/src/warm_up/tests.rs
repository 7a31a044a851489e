//! What is read, in which order, and what ends it.

use std::{fs, path::Path};

use rustix::fs::{Advice, fadvise};
use weightd_types::{Checksums, Layout, Object, ObjectPath, Snapshot, Version};

use super::*;

const PAGE_BYTES: usize = 4096;

const NOBODY: Readers<'_> = Readers { has: &|_| false, served: &|| 0 };

fn manifest(files: &[(&str, usize)]) -> SnapshotManifest {
    let object = |(path, size): &(&str, usize)| Object {
        path: ObjectPath::new(*path).unwrap(),
        size: *size as u64,
        version: Version::Generation(1),
        checksums: Checksums::default(),
    };
    let source = "gs://bucket/model".parse().unwrap();
    let snapshot = Snapshot::new(source, files.iter().map(object).collect()).unwrap();
    SnapshotManifest::new(&snapshot, Layout::Original, 0)
}

/// A store in which the files of a snapshot are as if they had been brought, and none of their pages is in memory.
struct Fixture {
    manifest: SnapshotManifest,
    warm_up: Arc<WarmUp>,
    warming: Arc<Warming>,
    _directory: tempfile::TempDir,
}

impl Fixture {
    fn new(files: &[(&str, usize)], floor: u64) -> Self {
        // Where programs are built is a disk; /tmp may be memory.
        let beside = std::env::current_exe().unwrap();
        let directory = tempfile::tempdir_in(beside.parent().unwrap()).unwrap();
        let manifest = manifest(files);
        let store = Store::open(weightd_store::Config::new(directory.path().join("store"))).unwrap();
        let mut config = Config::new(directory.path().join("volumes"));
        config.warm_up_floor_bytes = Some(floor);
        for entry in &manifest.objects {
            let path = store.blob_path(&entry.blob);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, vec![7; usize::try_from(entry.object.size).unwrap()]).unwrap();
            let file = File::open(&path).unwrap();
            file.sync_all().unwrap();
            fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        }
        let warm_up = Arc::new(WarmUp::new(store, &config, Metrics::default()));
        let warming = Arc::new(Warming::default());
        warm_up.state().warming.insert(manifest.key(), Arc::clone(&warming));
        Self { manifest, warm_up, warming, _directory: directory }
    }

    fn warm(&self) -> (End, u64) {
        self.warm_beside(&NOBODY)
    }

    fn warm_beside(&self, readers: &Readers<'_>) -> (End, u64) {
        let mut read = 0;
        let (this, warming) = (Arc::downgrade(&self.warm_up), Arc::downgrade(&self.warming));
        let end = WarmUp::warm_files(&this, &warming, &self.manifest, readers, &mut read);
        assert_eq!(self.warm_up.metrics.warmed_bytes.get(), read);
        (end, read)
    }

    /// Bytes of its files that are in memory.
    fn resident(&self) -> u64 {
        let paths = self.manifest.objects.iter().map(|entry| self.warm_up.store.blob_path(&entry.blob));
        paths.map(|path| resident(&path)).sum()
    }
}

/// Bytes of a file that are in memory. A read that does not wait would tell as well, but it begins to bring what it did
/// not find, and on a quick disk that is there before the answer.
#[expect(unsafe_code, reason = "mincore(2) is a call about addresses")]
fn resident(path: &Path) -> u64 {
    let file = File::open(path).unwrap();
    let length = usize::try_from(file.metadata().unwrap().len()).unwrap();
    if length == 0 {
        return 0;
    }
    let mut pages = vec![0_u8; length.div_ceil(PAGE_BYTES)];
    // SAFETY: nobody shortens the file, and there is a byte for each page of the mapping.
    let outcome = unsafe {
        let map = memmap2::Mmap::map(&file).unwrap();
        libc::mincore(map.as_ptr().cast_mut().cast(), length, pages.as_mut_ptr())
    };
    assert_eq!(outcome, 0, "{}: {}", path.display(), io::Error::last_os_error());
    let there = pages.iter().filter(|page| **page & 1 == 1).count();
    (there * PAGE_BYTES) as u64
}

#[test]
fn every_page_is_read_also_of_files_longer_than_the_kernel_takes_at_once() {
    let sizes = [("a.safetensors", 20 << 20), ("b.safetensors", (9 << 20) + 1), ("c.json", 1), ("d", 0)];
    let fixture = Fixture::new(&sizes, 1);
    assert_eq!(fixture.resident(), 0);
    let (end, read) = fixture.warm();
    assert!(matches!(end, End::Done), "{end:?}");
    assert_eq!(read, (29 << 20) + 2);
    assert!(fixture.resident() >= read, "{} of {read}", fixture.resident());
}

#[test]
fn nothing_is_read_that_does_not_fit() {
    let fixture = Fixture::new(&[("a.safetensors", 20 << 20)], 1 << 60);
    let (end, read) = fixture.warm();
    let End::NoRoom(why) = end else { panic!("{end:?}") };
    assert!(why.contains("the machine has"), "{why}");
    assert_eq!((read, fixture.resident()), (0, 0));
}

#[test]
fn what_someone_is_reading_already_is_left_out() {
    let fixture = Fixture::new(&[("a.safetensors", 4096), ("b.safetensors", 8192)], 1);
    let second = fixture.manifest.objects[1].blob;
    let (end, read) = fixture.warm_beside(&Readers { has: &|blob| *blob == second, ..NOBODY });
    assert!(matches!(end, End::Done), "{end:?}");
    assert_eq!((read, fixture.resident()), (4096, 4096));
}

#[test]
fn it_leaves_the_disk_to_readers_and_goes_on_after_them() {
    let fixture = Fixture::new(&[("a.safetensors", 24 << 20)], 1);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
    let _entered = runtime.enter();
    let warmed = fixture.warm_up.metrics.warmed_bytes.clone();
    let (looks, beside) = (AtomicU64::new(0), AtomicU64::new(0));
    // Somebody is read for until it has looked five times.
    let served = || {
        let look = looks.fetch_add(1, Ordering::Relaxed);
        if look < 5 {
            beside.store(warmed.get(), Ordering::Relaxed);
        }
        look.min(5)
    };
    let (end, read) = fixture.warm_beside(&Readers { served: &served, ..NOBODY });
    assert_eq!(beside.into_inner(), 0, "it was read beside a reader");
    assert!(matches!(end, End::Done), "{end:?}");
    assert_eq!(read, 24 << 20);
}

#[test]
fn what_is_warm_of_other_volumes_needs_its_room_too() {
    let fixture = Fixture::new(&[("a.safetensors", 20 << 20)], 1);
    let other = Arc::new(Warming { bytes: AtomicU64::new(1 << 60), ..Warming::default() });
    let key = manifest(&[("other", 1)]).key();
    fixture.warm_up.state().warming.insert(key, other);
    assert!(matches!(fixture.warm(), (End::NoRoom(_), 0)));
    fixture.warm_up.keep_only(|known| *known != key);
    assert!(matches!(fixture.warm(), (End::Done, _)));
}

#[test]
fn it_ends_when_no_volume_shows_the_snapshot() {
    let fixture = Fixture::new(&[("a.safetensors", 20 << 20)], 1);
    let (this, warming) = (Arc::downgrade(&fixture.warm_up), Arc::downgrade(&fixture.warming));
    let Fixture { manifest, warm_up, warming: held, _directory } = fixture;
    drop(held);
    warm_up.keep_only(|_| false);
    let mut read = 0;
    assert!(matches!(WarmUp::warm_files(&this, &warming, &manifest, &NOBODY, &mut read), End::Unwanted));
    assert_eq!(read, 0);
}

#[test]
fn a_file_that_cannot_be_read_ends_it_by_name() {
    let fixture = Fixture::new(&[("a.safetensors", 1), ("b.safetensors", 1)], 1);
    let path = fixture.warm_up.store.blob_path(&fixture.manifest.objects[1].blob);
    fs::remove_file(&path).unwrap();
    let (end, read) = fixture.warm();
    assert!(matches!(end, End::Failed(named, _) if named == path));
    assert_eq!(read, 1);
}

#[test]
fn shards_come_first_and_in_order_and_equal_files_once() {
    let manifest = manifest(&[
        ("config.json", 2),
        ("model-00002-of-00002.safetensors", 2),
        ("model-00001-of-00002.safetensors", 2),
        ("original/consolidated.00.pth", 2),
    ]);
    let mut twice = manifest.clone();
    twice.objects.push(manifest.objects[1].clone());
    let names: Vec<_> = in_order(&twice).iter().map(|entry| entry.object.path.file_name()).collect();
    let expected = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "config.json",
        "consolidated.00.pth",
    ];
    assert_eq!(names, expected);
}

#[tokio::test]
async fn a_snapshot_is_warmed_up_once_it_is_complete_and_once_for_each_time_it_is_wanted() {
    let fixture = Fixture::new(&[("a.safetensors", 1)], 1);
    let (key, warm_up) = (fixture.manifest.key(), &fixture.warm_up);
    warm_up.state().warming.clear();
    warm_up.completed(key, |_| false);
    assert!(warm_up.state().warming.is_empty(), "nobody wanted it");
    warm_up.want(key);
    assert!(warm_up.state().warming.is_empty(), "it is not complete");
    warm_up.completed(key, |_| false);
    let first = Arc::clone(&warm_up.state().warming[&key]);
    assert!(!warm_up.state().wanted.contains(&key));
    warm_up.want(key);
    warm_up.completed(key, |_| false);
    assert!(Arc::ptr_eq(&first, &warm_up.state().warming[&key]), "one at a time");
    first.is_over.store(true, Ordering::Release);
    warm_up.want(key);
    warm_up.completed(key, |_| false);
    assert!(!Arc::ptr_eq(&first, &warm_up.state().warming[&key]), "and again when it is wanted again");
    warm_up.end();
    warm_up.want(key);
    warm_up.completed(key, |_| false);
    assert!(warm_up.state().warming.is_empty(), "the agent ends");
}
