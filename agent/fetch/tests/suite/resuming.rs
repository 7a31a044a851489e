//! What an interrupted transfer left on the disk, and what happened to it before the next.

use bytes::Bytes;
use weightd_source::Faults;
use weightd_types::{Checksums, Crc32c, Digest, Layout};

use crate::{
    common::{Fixture, MODEL, assert_holds, hasty, safetensors, soon, until},
    verify::{blob_path, flip, verify},
};

/// Interrupts a transfer of one shard whose origin publishes these checksums, damages the blob's first chunks and
/// resumes. Gives how many bytes were served again.
async fn resumed_after_rot(layout: Layout, checksums: Checksums, shard: Bytes) -> u64 {
    let mut config = hasty();
    (config.bandwidth_bytes, config.range_bytes) = (Some(20 << 20), 8 << 20);
    (config.min_requests, config.max_requests) = (1, 1);
    let fixture = Fixture::faulty(&Faults::new(1), config).await;
    fixture.origin.put_with_checksums("model/a.safetensors", shard.clone(), checksums);
    let resolution = fixture.fetcher.resolve(&MODEL.parse().unwrap(), &Default::default()).await.unwrap();
    let transfer = fixture.fetcher.prefetch(resolution, layout, 0);
    let waiting = tokio::spawn({
        let transfer = transfer.clone();
        async move { transfer.wait().await }
    });
    until(|| transfer.done_bytes() > 18 << 20).await;
    fixture.fetcher.close().await;
    drop((waiting.await, transfer));
    let blob = blob_path(&fixture, "a.safetensors", "");
    let fixture = fixture.restart().await;
    for at in [5_000_000, 9_000_000] {
        flip(&blob, at);
    }
    let before = fixture.origin.bytes_served();
    let completed = soon(fixture.prefetch(layout)).await.unwrap();
    assert!(completed.reused_bytes >= 16 << 20, "{completed:?}");
    assert_holds(&completed.snapshot.directory.unwrap(), &[("a.safetensors", shard)]);
    assert!(verify(&fixture, false).await.1.is_empty());
    fixture.origin.bytes_served() - before
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_that_rotted_between_runs_are_fetched_again_and_no_others() {
    let shard = safetensors(&[("odd", 5), ("a", 39 << 20)], 3);
    let crc32c = Checksums { crc32c: Some(Crc32c::of(&shard)), ..Checksums::default() };
    let sha256 = Checksums { sha256: Some(Digest::of(&shard)), ..Checksums::default() };
    for checksums in [crc32c, sha256, Checksums::default()] {
        for layout in [Layout::Aligned, Layout::Original] {
            let served = resumed_after_rot(layout, checksums.clone(), shard.clone()).await;
            assert!(served < 40 << 20, "{layout:?}: {served} bytes served again");
        }
    }
}
