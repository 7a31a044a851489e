//! How far to read ahead of those who read files in order: not so far that one pushes another's chunks out of memory.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use weightd_types::BlobKey;

/// Most chunks ahead of a reader: enough to keep a disk busy while the reader copies.
const MOST: usize = 4;
/// A reader that was not heard of for so long has stopped.
const STOPPED: Duration = Duration::from_secs(2);

/// Files that are being read in order.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    readers: Mutex<HashMap<BlobKey, Instant>>,
}

impl Ahead {
    /// How many chunks to have ready for a reader of a blob, when there is room for so many chunks in all.
    pub(super) fn chunks(&self, blob: BlobKey, room: usize) -> usize {
        let now = Instant::now();
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        readers.insert(blob, now);
        readers.retain(|_, last| now - *last < STOPPED);
        // Half of the room is for what is being read.
        (room / 2 / readers.len()).min(MOST)
    }
}

#[cfg(test)]
mod tests {
    use weightd_types::Layout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn readers_share_the_room_until_they_stop() {
        let blob = |digit: &str| BlobKey { id: digit.repeat(64).parse().unwrap(), layout: Layout::Original };
        let ahead = Ahead::default();
        assert_eq!(ahead.chunks(blob("a"), 16), MOST);
        assert_eq!(ahead.chunks(blob("b"), 16), MOST);
        assert_eq!(ahead.chunks(blob("c"), 16), 2);
        for digit in ["d", "e", "f", "0", "1"] {
            ahead.chunks(blob(digit), 16);
        }
        assert_eq!(ahead.chunks(blob("2"), 16), 0, "there is no room for any");
        tokio::time::advance(STOPPED).await;
        assert_eq!(ahead.chunks(blob("a"), 16), MOST);
    }
}
