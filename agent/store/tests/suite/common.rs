//! Blobs and snapshots to store, and ways to store them.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use weightd_store::{
    Config, PartialBlob, Reservation, SnapshotManifest, Store, StoreError, WantedBlob,
    io::{BufferPool, IoEngine, PowerLossEngine},
};
use weightd_types::{
    BlobKey, Checksums, Crc32c, Layout, Object, ObjectPath, Placement, SafetensorsHeader, Snapshot,
    SourceUri, Version,
};

/// A chunk and a bit, so that there are two.
pub(crate) const TWO_CHUNKS: usize = (8 << 20) + 5000;

/// An object, and the blob it should become.
#[derive(Debug)]
pub(crate) struct Thing {
    pub(crate) wanted: WantedBlob,
    pub(crate) bytes: Bytes,
    pub(crate) blob: Vec<u8>,
}

impl Thing {
    pub(crate) fn key(&self) -> BlobKey {
        self.wanted.key
    }

    pub(crate) fn pieces(&self) -> usize {
        self.wanted.placement.pieces().len()
    }

    pub(crate) fn piece(&self, at: usize) -> &[u8] {
        let range = self.wanted.placement.pieces()[at].object;
        &self.bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
    }

    pub(crate) async fn write(
        &self,
        store: &Store,
        partial: &PartialBlob,
        at: usize,
    ) -> Result<(), StoreError> {
        let mut buffer = store.pool().acquire().await;
        buffer.extend_from_slice(self.piece(at));
        partial
            .write(self.wanted.placement.pieces()[at].blob, buffer, &[(at, Crc32c::of(self.piece(at)))])
            .await
    }

    /// Brings all of it in.
    pub(crate) async fn store(&self, store: &Store) -> Result<(), StoreError> {
        let reservation = store.reserve(0).await?;
        self.store_within(store, &reservation).await
    }

    pub(crate) async fn store_within(
        &self,
        store: &Store,
        reservation: &Reservation,
    ) -> Result<(), StoreError> {
        if store.has_blob(&self.key()) {
            return Ok(());
        }
        let partial = store.begin(self.wanted.clone(), reservation).await?;
        for at in 0..self.pieces() {
            if !partial.has_piece(at) {
                self.write(store, &partial, at).await?;
            }
        }
        store.finish(partial).await.map(drop)
    }
}

/// Bytes that differ from block to block and thing to thing.
pub(crate) fn pattern(len: usize, seed: u64) -> Bytes {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    bytes.into()
}

/// An object that is stored as it is.
pub(crate) fn plain(name: &str, len: usize) -> Arc<Thing> {
    let seed = name.bytes().fold(7, |seed: u64, byte| seed.wrapping_mul(31) + u64::from(byte));
    thing(name, pattern(len, seed), Layout::Original)
}

/// Safetensors in the aligned layout, with an odd tensor that moves to the end.
pub(crate) fn aligned(name: &str, len: usize) -> Arc<Thing> {
    let (odd, all) = (4, len + 4);
    let json = format!(
        r#"{{"odd":{{"dtype":"U8","shape":[{odd}],"data_offsets":[0,{odd}]}},"even":{{"dtype":"U8","shape":[{len}],"data_offsets":[{odd},{all}]}}}}"#
    );
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes.extend_from_slice(&pattern(all, 99));
    thing(name, bytes.into(), Layout::Aligned)
}

fn thing(name: &str, bytes: Bytes, layout: Layout) -> Arc<Thing> {
    let source = source();
    let checksums = Checksums { crc32c: Some(Crc32c::of(&bytes)), ..Checksums::default() };
    let (path, size) = (ObjectPath::new(name).unwrap(), bytes.len() as u64);
    let object = Object { path, size, version: Version::Generation(1), checksums };
    let (header, placement) = match layout {
        Layout::Original => (Bytes::new(), Placement::original(size)),
        Layout::Aligned => {
            let length = usize::try_from(SafetensorsHeader::length(&bytes, size).unwrap()).unwrap();
            let header = SafetensorsHeader::parse(bytes.slice(..length), size).unwrap();
            (header.raw().clone(), header.aligned().unwrap())
        }
    };
    let key = BlobKey { id: weightd_types::BlobId::of(&source, &object), layout };
    let blob = placement.apply(&bytes);
    let url = source.object_url(&object.path);
    let wanted = WantedBlob { key, url, object, header, placement: Arc::new(placement) };
    Arc::new(Thing { wanted, bytes, blob })
}

fn source() -> SourceUri {
    "memory://m/model".parse().unwrap()
}

/// A snapshot of things.
pub(crate) fn snapshot(things: &[&Arc<Thing>]) -> SnapshotManifest {
    let objects = things.iter().map(|thing| thing.wanted.object.clone()).collect();
    SnapshotManifest::new(&Snapshot::new(source(), objects).unwrap(), Layout::Aligned, 1)
}

/// Brings a whole snapshot in.
pub(crate) async fn bring(store: &Store, things: &[&Arc<Thing>]) -> Result<SnapshotManifest, StoreError> {
    let manifest = snapshot(things);
    let _hold = store.expect(manifest.clone()).await?;
    let reservation = store.reserve_for(&manifest).await?;
    for thing in things {
        thing.store_within(store, &reservation).await?;
    }
    store.publish(manifest.clone()).await?;
    Ok(manifest)
}

/// Checks that a snapshot is complete and each of its files right.
pub(crate) async fn assert_whole(store: &Store, things: &[&Arc<Thing>], context: &str) {
    let key = snapshot(things).key();
    assert!(store.is_complete(key).await.unwrap(), "{context}: {key} is not complete");
    let directory = store.snapshot(&key).unwrap().directory.unwrap();
    for thing in things {
        let path = directory.join(&thing.wanted.object.path);
        assert!(std::fs::read(&path).unwrap() == thing.blob, "{context}: {} has other bytes", path.display());
    }
}

/// Checks every chunk of a complete blob.
pub(crate) async fn assert_sound(store: &Store, thing: &Thing, context: &str) {
    let name = &thing.wanted.url;
    let blob =
        store.stored_blob(thing.key()).await.unwrap().unwrap_or_else(|| panic!("{context}: {name} is gone"));
    assert_eq!(blob.header(), &thing.wanted.header, "{context}");
    for chunk in 0..blob.placement().chunk_count() {
        let (buffer, good) = blob.check_chunk(chunk, store.pool().acquire().await).await.unwrap();
        assert!(good, "{context}: chunk {chunk} of {name} is damaged");
        let range = blob.placement().chunk_range(chunk);
        let expected =
            &thing.blob[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
        assert!(buffer[..expected.len()] == *expected, "{context}: chunk {chunk} of {name} has other bytes");
    }
}

/// No floor, no quota, and checkpoints only when asked for.
pub(crate) fn config(directory: &Path) -> Config {
    let mut config = Config::new(directory.join("store"));
    config.floor = 0.0;
    config.buffer_bytes = 32 << 20;
    config.checkpoint_interval = Duration::from_hours(1);
    config
}

/// Opens a store, waiting for one that was dropped a moment ago to let go.
pub(crate) fn open(config: &Config) -> Store {
    patiently(|| Store::open(config.clone())).unwrap()
}

/// A store that loses what was not synced.
pub(crate) fn open_losing(config: &Config) -> (PowerLossEngine, Result<Store, StoreError>) {
    std::fs::create_dir_all(&config.directory).unwrap();
    let engine = PowerLossEngine::new(&config.directory).unwrap();
    let shared: Arc<dyn IoEngine> = Arc::new(engine.clone());
    let pool = BufferPool::new(4).unwrap();
    let store = patiently(|| Store::open_on(config.clone(), pool.clone(), Arc::clone(&shared)));
    (engine, store)
}

fn patiently(open: impl Fn() -> Result<Store, StoreError>) -> Result<Store, StoreError> {
    for _ in 0..500 {
        match open() {
            Err(StoreError::Locked { .. }) => std::thread::sleep(Duration::from_millis(10)),
            other => return other,
        }
    }
    open()
}

pub(crate) fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

/// A directory beside the test binary: on the disk that builds go to, which is not a tmpfs.
pub(crate) fn on_disk() -> tempfile::TempDir {
    tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap()
}
