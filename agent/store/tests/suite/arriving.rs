//! Chunks on their way to the disk.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
};

use weightd_types::Crc32c;

use crate::common::{TWO_CHUNKS, aligned, assert_sound, config, on_disk, open};

/// One thread: what a write has begun goes on only while the test waits for something.
#[tokio::test]
async fn a_chunk_can_be_read_before_the_disk_has_it() {
    let directory = on_disk();
    let store = open(&config(directory.path()));
    let thing = aligned("a.safetensors", TWO_CHUNKS);
    let promise = store.reserve(0).await.unwrap();
    let partial = store.begin(thing.wanted.clone(), &promise).await.unwrap();
    for chunk in 0..thing.wanted.placement.chunk_count() {
        let pieces = thing.wanted.placement.pieces_of_chunk(chunk);
        assert_eq!(pieces.len(), 1, "the bytes of this chunk come in one write");
        let range = thing.wanted.placement.chunk_range(chunk);
        let buffer = store.pool().acquire().await;
        {
            let mut write = pin!(thing.write(&store, &partial, pieces[0] as usize));
            let mut begin = async || poll_fn(|context| Poll::Ready(write.as_mut().poll(context))).await;
            assert!(begin().await.is_pending());
            assert!(partial.can_read(chunk) && !partial.has_chunk(chunk));
            let (read, crc) = partial.read_chunk(chunk, buffer).await.unwrap().unwrap();
            assert!(
                read[..]
                    == thing.blob[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
            );
            assert_eq!(crc, Crc32c::of(&read));
        }
        assert!(!partial.can_read(chunk), "the writer went away");
        thing.write(&store, &partial, pieces[0] as usize).await.unwrap();
        assert!(partial.has_chunk(chunk));
    }
    drop(partial);
    thing.store(&store).await.unwrap();
    assert_sound(&store, &thing, "after it was read on its way").await;
}
