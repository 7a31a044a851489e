//! What readers find rotten while a blob is being confirmed.

use std::{
    os::unix::fs::FileExt,
    pin::pin,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use bytes::Bytes;
use weightd_source::{MemoryOrigin, Opener};
use weightd_store::{SnapshotManifest, Store};
use weightd_types::{CHUNK_BYTES, Checksums, Digest, Layout, Selection, SourceUri};

use super::*;
use crate::{BlobProgress, Config, Fetcher, Route};

/// A blob that only the test writes to: nothing of it is fetched.
struct Arriving {
    fetcher: Fetcher,
    flying: Flying,
    bytes: Bytes,
    _directory: tempfile::TempDir,
}

impl Arriving {
    async fn new(bytes: Vec<u8>, checksums: Checksums) -> Self {
        let (directory, origin) = (tempfile::tempdir().unwrap(), MemoryOrigin::new("origin"));
        let bytes = Bytes::from(bytes);
        origin.put_with_checksums("model/w", bytes.clone(), checksums);
        let mut config = weightd_store::Config::new(directory.path().join("store"));
        (config.buffer_bytes, config.floor) = (64 << 20, 0.0);
        let store = Store::open(config).unwrap();
        let fetcher = Fetcher::start(store, std::sync::Arc::new(origin.clone()), Config::default());
        let uri: SourceUri = "memory://origin/model".parse().unwrap();
        let resolution = fetcher.resolve(&uri, &Selection::default()).await.unwrap();
        let manifest = SnapshotManifest::new(&resolution.snapshot, Layout::Original, 1);
        let entry = &manifest.objects[0];
        let (source, object) = (origin.open(&uri).await.unwrap(), entry.object.clone());
        let route = Route { source, url: uri.object_url(&object.path), object };
        let prepared = fetcher.inner.prepare(&route, entry.blob).await.unwrap();
        let promise = fetcher.store().reserve(0).await.unwrap();
        let partial = fetcher.store().begin(prepared.wanted, &promise).await.unwrap();
        let progress = BlobProgress::new(bytes.len() as u64);
        let (flying, _) = Flying::new(route, partial, progress.into());
        Self { fetcher, flying, bytes, _directory: directory }
    }

    fn confirm(&self) -> impl Future<Output = Result<Option<Mismatch>, FetchError>> {
        confirm(&self.fetcher.inner, &self.flying)
    }

    fn piece(&self, at: usize) -> Vec<u8> {
        let range = self.flying.partial.placement().pieces()[at].object;
        self.bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()].to_vec()
    }

    async fn write(&self, at: usize, bytes: &[u8], crc: Crc32c) {
        let mut buffer = self.fetcher.store().pool().acquire().await;
        buffer.extend_from_slice(bytes);
        let partial = &self.flying.partial;
        partial.write(partial.placement().pieces()[at].blob, buffer, &[(at, crc)]).await.unwrap();
    }

    /// Reads a chunk as someone does who has the volume mounted.
    async fn is_sound(&self, chunk: u32) -> bool {
        let buffer = self.fetcher.store().pool().acquire().await;
        self.flying.partial.read_chunk(chunk, buffer).await.unwrap().is_some()
    }

    /// Waits until nobody is at work in a buffer.
    async fn quiet(&self) {
        while self.fetcher.store().pool().in_use() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// One thread: what sums goes on only while the test waits.
#[tokio::test]
async fn what_was_summed_and_came_back_damaged_is_not_confirmed() {
    let chunk = usize::try_from(CHUNK_BYTES).unwrap();
    let bytes: Vec<u8> = (0..chunk + 5000).map(|at| (at * 31 / 7).to_le_bytes()[0]).collect();
    let checksums = Checksums { sha256: Some(Digest::of(&bytes)), ..Checksums::default() };
    let arriving = Arriving::new(bytes, checksums).await;
    let (first, second) = (arriving.piece(0), arriving.piece(1));
    arriving.write(0, &first, Crc32c::of(&first)).await;
    {
        let mut confirming = pin!(arriving.confirm());
        tokio::select! {
            biased;
            early = &mut confirming => panic!("half of it is missing: {early:?}"),
            // It has a buffer from its first moment on, until the first piece is summed.
            () = arriving.quiet() => {}
        }
        let path = arriving.fetcher.store().blob_path(&arriving.flying.partial.key());
        std::fs::File::options().write(true).open(path).unwrap().write_all_at(b"rot", 1000).unwrap();
        assert!(!arriving.is_sound(0).await);
        let mut damaged = first.clone();
        damaged[2000] ^= 1;
        arriving.write(0, &damaged, Crc32c::of(&damaged)).await;
        assert!(arriving.is_sound(0).await, "nobody else can know");
        arriving.write(1, &second, Crc32c::of(&second)).await;
        let mismatch = confirming.await.unwrap().expect("the manifest would vouch for damage");
        assert!(mismatch.expected.starts_with("sha256 "), "{mismatch:?}");
    }
    arriving.write(0, &first, Crc32c::of(&first)).await;
    assert_eq!(arriving.confirm().await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_blob_may_lack_a_chunk_a_moment_later() {
    let bytes = vec![7; 100];
    let crc = Crc32c::of(&bytes);
    let checksums = Checksums { crc32c: Some(crc), ..Checksums::default() };
    let arriving = std::sync::Arc::new(Arriving::new(bytes.clone(), checksums).await);
    let over = std::sync::Arc::new(AtomicBool::new(false));
    let confirming = tokio::spawn({
        let (arriving, over) = (std::sync::Arc::clone(&arriving), std::sync::Arc::clone(&over));
        async move {
            // It waits only while the chunk is missing: the moment that matters is a short one.
            while !over.load(Ordering::Acquire) {
                arriving.confirm().await.unwrap();
            }
        }
    });
    for _ in 0..2000 {
        arriving.write(0, &bytes, Crc32c::of(b"other bytes")).await;
        assert!(!arriving.is_sound(0).await);
    }
    over.store(true, Ordering::Release);
    arriving.write(0, &bytes, crc).await;
    confirming.await.expect("it goes on waiting");
}
