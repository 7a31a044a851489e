//! One suite that every engine passes on a real file system: an engine may be slow, but not different.

use std::{path::Path, sync::Arc, time::Duration};

use tempfile::TempDir;

use super::*;

mod data;
mod full_disk;
mod names;

/// An engine on an empty directory, with few buffers.
pub(super) struct Fixture {
    pub(super) engine: Arc<dyn IoEngine>,
    pub(super) pool: BufferPool,
    pub(super) directory: TempDir,
}

/// Starts the engine under test.
type Start = fn(&Path, &BufferPool) -> io::Result<Arc<dyn IoEngine>>;

impl Fixture {
    fn new(start: Start, directory: TempDir) -> Self {
        let pool = BufferPool::new(4).unwrap();
        let engine = start(directory.path(), &pool).unwrap();
        Self { engine, pool, directory }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    /// Writes `bytes` in one call.
    async fn write(&self, file: &Arc<IoFile>, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut buffer = self.pool.acquire().await;
        assert_eq!(buffer.extend_from_slice(bytes), bytes.len());
        self.engine.write(file, offset, Arc::new(buffer)).await
    }

    /// Reads in one call, into a buffer full of other bytes.
    async fn read(&self, file: &Arc<IoFile>, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut buffer = self.pool.acquire().await;
        buffer.set_len(Buffer::CAPACITY);
        buffer.fill(0xee);
        let (buffer, outcome) = self.engine.read(file, offset, len, buffer).await;
        outcome.map(|()| buffer.to_vec())
    }

    /// Waits until every buffer is back.
    async fn all_buffers_back(&self) {
        let back = async {
            while self.pool.in_use() > 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), back).await.expect("buffers were lost");
    }
}

/// A directory beside the test binary: on the disk that builds go to, which is not a tmpfs.
pub(super) fn on_disk() -> TempDir {
    let binary = std::env::current_exe().unwrap();
    tempfile::tempdir_in(binary.parent().unwrap()).unwrap()
}

fn in_memory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

/// Bytes that differ from one block to the next.
pub(super) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    bytes
}

/// Runs each test of the suite with one engine.
macro_rules! conformance {
    ($engine:ident, $start:expr, $directory:expr, [$($subject:ident::$test:ident),* $(,)?]) => {
        mod $engine {
            use super::*;
            $(
                #[tokio::test]
                async fn $test() {
                    $subject::$test(Fixture::new($start, $directory)).await;
                }
            )*
        }
    };
}

/// The whole list, so that no engine leaves a test out.
macro_rules! every_test {
    ($engine:ident, $start:expr, $directory:expr) => {
        conformance!(
            $engine,
            $start,
            $directory,
            [
                data::whole_chunks_come_back,
                data::any_piece_at_any_offset_comes_back,
                data::short_and_empty_files_work,
                data::reading_past_the_end_gives_what_is_there,
                data::reads_must_begin_on_a_block,
                data::direct_reads_see_buffered_writes,
                data::many_writes_share_few_buffers,
                data::dropped_callers_lose_no_buffer,
                data::a_refused_write_gives_the_buffer_back,
                data::an_engine_ends_while_writes_are_in_flight,
                names::creating_allocates_and_never_overwrites,
                names::opening_what_is_missing_fails,
                names::small_files_are_replaced_whole,
                names::links_renames_and_removals,
                names::trees_come_and_go,
                names::syncs_succeed,
                names::the_index_keeps_its_tables,
                full_disk::no_room_to_create_leaves_nothing,
                full_disk::no_room_to_write_is_storage_full,
            ]
        );
    };
}

every_test!(uring, |directory, pool| Ok(Arc::new(UringEngine::new(directory, pool)?)), on_disk());
every_test!(pwrite, |directory, _| Ok(Arc::new(PwriteEngine::new(directory)?)), on_disk());
every_test!(power_loss, |directory, _| Ok(Arc::new(PowerLossEngine::new(directory)?)), on_disk());
every_test!(pwrite_in_memory, |directory, _| Ok(Arc::new(PwriteEngine::new(directory)?)), in_memory());

#[test]
fn the_choice_falls_back_where_nothing_bypasses_the_cache() {
    let (disk, memory, pool) = (on_disk(), in_memory(), BufferPool::new(1).unwrap());
    let engine = open_engine(memory.path(), &pool, EngineChoice::Auto).unwrap();
    assert_eq!((engine.name(), engine.is_direct()), ("pwrite", false));
    let engine = open_engine(disk.path(), &pool, EngineChoice::Pwrite).unwrap();
    assert_eq!(engine.name(), "pwrite");
    match UringEngine::probe(disk.path()) {
        Ok(support) if support.direct => {
            let engine = open_engine(disk.path(), &pool, EngineChoice::Auto).unwrap();
            assert_eq!((engine.name(), engine.is_direct()), ("io_uring", true));
        }
        other => weightd_harness::skip(&format!("{other:?}")),
    }
    assert!(std::fs::read_dir(disk.path()).unwrap().next().is_none(), "probing leaves nothing behind");
    let missing = disk.path().join("missing");
    let error = open_engine(&missing, &pool, EngineChoice::Auto).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}
