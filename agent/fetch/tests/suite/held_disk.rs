//! A disk that takes its time.

use std::{io, path::Path, sync::Arc};

use async_trait::async_trait;
use tokio::sync::Semaphore;
use weightd_fetch::{Config, Fetcher};
use weightd_source::{MemoryOrigin, Opener};
use weightd_store::{
    Store,
    io::{Access, Buffer, BufferPool, IoEngine, IoFile, PwriteEngine},
};
use weightd_types::CHUNK_BYTES;

use crate::common::{Fixture, MODEL, assert_holds, put_model, soon, until};

/// Headers are shorter, and are written before anything is asked for.
const HEADERS_BYTES: usize = 1 << 20;

/// An engine that writes what is asked for as soon as it is let.
#[derive(Debug)]
struct HeldEngine {
    inner: PwriteEngine,
    let_go: Semaphore,
}

#[async_trait]
impl IoEngine for HeldEngine {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn is_direct(&self) -> bool {
        self.inner.is_direct()
    }

    fn create(&self, path: &Path, len: u64) -> io::Result<Arc<IoFile>> {
        self.inner.create(path, len)
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<IoFile>> {
        self.inner.open(path, access)
    }

    async fn write(&self, file: &Arc<IoFile>, offset: u64, buffer: Arc<Buffer>) -> io::Result<()> {
        // Closed when all may go.
        assert!(buffer.len() < HEADERS_BYTES || self.let_go.acquire().await.is_err());
        self.inner.write(file, offset, buffer).await
    }

    async fn read(
        &self,
        file: &Arc<IoFile>,
        offset: u64,
        len: usize,
        buffer: Buffer,
    ) -> (Buffer, io::Result<()>) {
        self.inner.read(file, offset, len, buffer).await
    }

    fn sync(&self, file: &IoFile) -> io::Result<()> {
        self.inner.sync(file)
    }

    fn sync_all(&self, directory: &Path) -> io::Result<()> {
        self.inner.sync_all(directory)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        self.inner.sync_directory(directory)
    }

    fn write_whole(&self, path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
        self.inner.write_whole(path, bytes, durable)
    }

    fn link(&self, existing: &Path, new: &Path) -> io::Result<()> {
        self.inner.link(existing, new)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.remove(path)
    }

    fn create_directories(&self, path: &Path) -> io::Result<()> {
        self.inner.create_directories(path)
    }

    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_tree(path)
    }

    fn index_backend(&self, path: &Path) -> io::Result<Box<dyn redb::StorageBackend>> {
        self.inner.index_backend(path)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_request_begins_although_the_disk_has_not_taken_what_came_before() {
    let origin = MemoryOrigin::new("origin");
    let objects = put_model(&origin);
    let directory = tempfile::tempdir().unwrap();
    let engine = PwriteEngine::new(directory.path()).unwrap();
    let held = Arc::new(HeldEngine { inner: engine, let_go: Semaphore::new(0) });
    let mut config = weightd_store::Config::new(directory.path().join("store"));
    config.floor = 0.0;
    let pool = BufferPool::new(8).unwrap();
    let store = tokio::task::spawn_blocking({
        let engine = Arc::clone(&held) as Arc<dyn IoEngine>;
        move || Store::open_on(config, pool, engine).unwrap()
    });
    let one_at_a_time =
        Config { range_bytes: CHUNK_BYTES, min_requests: 1, max_requests: 1, ..Config::default() };
    let opener: Arc<dyn Opener> = Arc::new(origin.clone());
    let fetcher = Fetcher::start(store.await.unwrap(), opener, one_at_a_time);
    let fixture = Fixture { origin, fetcher, directory };
    let transfer = fixture.start(MODEL, 0).await;
    // Nothing comes of what nobody waits for.
    let waiting = tokio::spawn(async move { transfer.wait().await });
    until(|| fixture.origin.bytes_served() > 3 * CHUNK_BYTES).await;
    held.let_go.close();
    let completed = soon(waiting).await.unwrap().unwrap();
    assert_holds(&completed.snapshot.directory.unwrap(), &objects);
}
