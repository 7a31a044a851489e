//! Bytes in, the same bytes out.

use std::{
    future::{Future, poll_fn},
    io::Read,
    os::unix::fs::FileExt,
    pin::pin,
    task::Poll,
};

use weightd_types::CHUNK_BYTES;

use super::*;

pub(super) async fn whole_chunks_come_back(on: Fixture) {
    let file = on.engine.create(&on.path("blob"), 3 * CHUNK_BYTES).unwrap();
    let chunks = [pattern(Buffer::CAPACITY, 1), pattern(Buffer::CAPACITY, 2), pattern(Buffer::CAPACITY, 3)];
    for (number, chunk) in [2, 1, 0].map(|number| (number as u64, &chunks[number])) {
        on.write(&file, number * CHUNK_BYTES, chunk).await.unwrap();
    }
    on.engine.sync(&file).unwrap();
    for (number, chunk) in (0..3).zip(&chunks) {
        assert!(on.read(&file, number * CHUNK_BYTES, Buffer::CAPACITY).await.unwrap() == *chunk);
    }
    // Others see the same, through the page cache and through another handle.
    let reopened = on.engine.open(&on.path("blob"), Access::Read).unwrap();
    assert_eq!((reopened.len(), reopened.path()), (3 * CHUNK_BYTES, on.path("blob").as_path()));
    assert!(on.read(&reopened, CHUNK_BYTES, Buffer::CAPACITY).await.unwrap() == chunks[1]);
    assert!(std::fs::read(on.path("blob")).unwrap() == chunks.concat());
}

/// Against a model in memory, with lengths and offsets around the edges of blocks.
pub(super) async fn any_piece_at_any_offset_comes_back(on: Fixture) {
    let len = 200_003;
    let file = on.engine.create(&on.path("blob"), len as u64).unwrap();
    let (mut model, mut random) = (vec![0; len], fastrand::Rng::with_seed(7));
    for round in 0..120 {
        let edge = random.usize(..=len / 4096) * 4096;
        let start = (edge + random.choice([0, 0, 1, 512, 4000, 4095]).unwrap()).min(len - 1);
        let piece = random.choice([1, 511, 4096, 8192, 10_000, 70_000]).unwrap().min(len - start);
        let bytes = pattern(piece, round);
        on.write(&file, start as u64, &bytes).await.unwrap();
        model[start..start + piece].copy_from_slice(&bytes);
        let from = start - start % 4096;
        let read = on.read(&file, from as u64, piece).await.unwrap();
        assert!(read == model[from..(from + piece).min(len)], "round {round}: {piece} bytes at {start}");
    }
    assert!(on.read(&file, 0, len).await.unwrap() == model);
    assert_eq!(std::fs::metadata(on.path("blob")).unwrap().len(), len as u64);
}

pub(super) async fn short_and_empty_files_work(on: Fixture) {
    let empty = on.engine.create(&on.path("empty"), 0).unwrap();
    assert!(empty.is_empty());
    on.write(&empty, 0, b"").await.unwrap();
    assert_eq!(on.read(&empty, 0, 4096).await.unwrap(), b"");
    assert_eq!(std::fs::metadata(on.path("empty")).unwrap().len(), 0);

    let short = on.engine.create(&on.path("short"), 5).unwrap();
    on.write(&short, 0, b"bytes").await.unwrap();
    assert_eq!(on.read(&short, 0, 5).await.unwrap(), b"bytes");
    assert_eq!(on.read(&short, 0, 3).await.unwrap(), b"byt");
}

pub(super) async fn reading_past_the_end_gives_what_is_there(on: Fixture) {
    let file = on.engine.create(&on.path("blob"), 10_000).unwrap();
    let bytes = pattern(10_000, 4);
    on.write(&file, 0, &bytes).await.unwrap();
    assert_eq!(on.read(&file, 8192, Buffer::CAPACITY).await.unwrap(), bytes[8192..]);
    assert_eq!(on.read(&file, 4096, 4096).await.unwrap(), bytes[4096..8192]);
    assert_eq!(on.read(&file, 12_288, 4096).await.unwrap(), b"");
    assert_eq!(on.read(&file, CHUNK_BYTES, 1).await.unwrap(), b"");
}

pub(super) async fn reads_must_begin_on_a_block(on: Fixture) {
    let file = on.engine.create(&on.path("blob"), 10_000).unwrap();
    let error = on.read(&file, 100, 10).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    on.all_buffers_back().await;
}

/// The kernel writes dirty pages back before a direct read, and drops cached ones after a direct write.
pub(super) async fn direct_reads_see_buffered_writes(on: Fixture) {
    let file = on.engine.create(&on.path("blob"), 16_384).unwrap();
    on.write(&file, 0, &pattern(16_384, 5)).await.unwrap();
    let other = std::fs::OpenOptions::new().read(true).write(true).open(on.path("blob")).unwrap();
    for round in 0..20u8 {
        other.write_all_at(&[round; 100], 4096 + 50).unwrap();
        assert_eq!(on.read(&file, 4096, 4096).await.unwrap()[50..150], [round; 100]);
        on.write(&file, 4096, &[round ^ 0xff; 4096]).await.unwrap();
        let mut cached = [0; 4096];
        other.read_exact_at(&mut cached, 4096).unwrap();
        assert_eq!(cached, [round ^ 0xff; 4096]);
    }
}

pub(super) async fn many_writes_share_few_buffers(on: Fixture) {
    let (writes, piece) = (200u64, 40_960);
    let file = on.engine.create(&on.path("blob"), writes * piece as u64).unwrap();
    let on = Arc::new(on);
    let tasks: Vec<_> = (0..writes)
        .map(|number| {
            let (on, file) = (Arc::clone(&on), Arc::clone(&file));
            tokio::spawn(async move {
                let bytes = pattern(piece, number);
                on.write(&file, number * piece as u64, &bytes).await.unwrap();
                assert!(on.read(&file, number * piece as u64, piece).await.unwrap() == bytes);
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let mut whole = Vec::new();
    std::fs::File::open(on.path("blob")).unwrap().read_to_end(&mut whole).unwrap();
    assert!(whole.chunks(piece).zip(0..).all(|(bytes, number)| *bytes == pattern(piece, number)));
    on.all_buffers_back().await;
}

pub(super) async fn dropped_callers_lose_no_buffer(on: Fixture) {
    let file = on.engine.create(&on.path("blob"), 8 * CHUNK_BYTES).unwrap();
    let bytes = pattern(Buffer::CAPACITY, 6);
    for round in 0..8 {
        let mut buffer = on.pool.acquire().await;
        buffer.extend_from_slice(&bytes);
        let mut write = pin!(on.engine.write(&file, round * CHUNK_BYTES, Arc::new(buffer)));
        poll_fn(|context| {
            // Begun, and dropped at the end of the round, most often before the disk is done.
            let _ = write.as_mut().poll(context);
            Poll::Ready(())
        })
        .await;
    }
    on.all_buffers_back().await;
    for round in 0..8 {
        assert!(on.read(&file, round * CHUNK_BYTES, Buffer::CAPACITY).await.unwrap() == bytes);
    }
}

pub(super) async fn a_refused_write_gives_the_buffer_back(on: Fixture) {
    drop(on.engine.create(&on.path("blob"), 16_384).unwrap());
    let file = on.engine.open(&on.path("blob"), Access::Read).unwrap();
    for bytes in [pattern(8192, 8), pattern(100, 8)] {
        assert!(on.write(&file, 0, &bytes).await.is_err());
    }
    assert_eq!(on.read(&file, 0, 10).await.unwrap(), [0; 10]);
    on.all_buffers_back().await;
}

pub(super) async fn an_engine_ends_while_writes_are_in_flight(on: Fixture) {
    let file = on.engine.create(&on.path("blob"), 3 * CHUNK_BYTES).unwrap();
    let bytes = pattern(Buffer::CAPACITY, 9);
    for number in 0..3 {
        let (engine, file, pool) = (Arc::clone(&on.engine), Arc::clone(&file), on.pool.clone());
        let bytes = bytes.clone();
        let (begun, wait) = tokio::sync::oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let mut buffer = pool.acquire().await;
            buffer.extend_from_slice(&bytes);
            let mut write = pin!(engine.write(&file, number * CHUNK_BYTES, Arc::new(buffer)));
            let mut begun = Some(begun);
            poll_fn(|context| {
                let poll = write.as_mut().poll(context);
                drop(begun.take());
                poll.map(drop)
            })
            .await;
        });
        drop(wait.await);
        task.abort();
        drop(task.await);
    }
    let Fixture { engine, pool, directory } = on;
    drop(engine);
    let back = async {
        while pool.in_use() > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), back).await.expect("buffers were lost");
    assert!(
        std::fs::read(directory.path().join("blob")).unwrap() == bytes.repeat(3),
        "what was begun is done"
    );
}
