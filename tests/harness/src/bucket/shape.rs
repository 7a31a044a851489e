//! How fast bodies go out: as fast as they can, or as from a real bucket.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use tokio::time::{Instant, sleep_until};

/// Bytes of a body that are handed over at once: enough for big writes. What was handed over counts as sent, so for a client
/// that breaks off it is also what may be counted too much.
const PIECE: usize = 1 << 20;
/// The same where pieces wait for their turn.
const SHAPED_PIECE: usize = 256 << 10;
/// How far a pace may catch up. Timers are late by a millisecond or two, and more on a busy machine.
const SLACK: Duration = Duration::from_millis(10);

/// How a server is slowed down. Not at all by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shape {
    /// How long each answer is waited for.
    pub first_byte: Duration,
    /// Bytes per second of each connection.
    pub per_connection: Option<u64>,
    /// Bytes per second of all connections together.
    pub per_host: Option<u64>,
}

/// A rate, and what of it is given away.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_second: Option<u64>,
    free_at: Mutex<Instant>,
}

/// What bodies go out by: one for each connection.
#[derive(Debug)]
pub(super) struct Line {
    own: Pace,
    host: Arc<Pace>,
    sent: Arc<AtomicU64>,
}

impl Shape {
    /// What one node sees of a bucket in its region: 50 ms until a byte comes, 150 MB/s by one connection and 10 Gbit/s
    /// by any number of them.
    pub fn like_a_bucket() -> Self {
        Self {
            first_byte: Duration::from_millis(50),
            per_connection: Some(150_000_000),
            per_host: Some(1_250_000_000),
        }
    }
}

impl Pace {
    pub(super) fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second, free_at: Mutex::new(Instant::now()) }
    }

    /// Waits for the turn of so many bytes.
    async fn turn(&self, bytes: usize) {
        let Some(rate) = self.bytes_per_second else { return };
        let takes = Duration::from_nanos(bytes as u64 * 1_000_000_000 / rate.max(1));
        let until = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            *free_at = (*free_at).max(now.checked_sub(SLACK).unwrap_or(now)) + takes;
            *free_at
        };
        sleep_until(until).await;
    }
}

impl Line {
    pub(super) fn new(shape: &Shape, host: Arc<Pace>, sent: Arc<AtomicU64>) -> Self {
        Self { own: Pace::new(shape.per_connection), host, sent }
    }

    /// A body that goes out by it. Its length is not said: a header has to.
    pub(super) fn body(self: &Arc<Self>, bytes: Bytes) -> Body {
        let is_shaped = self.own.bytes_per_second.is_some() || self.host.bytes_per_second.is_some();
        let piece = if is_shaped { SHAPED_PIECE } else { PIECE };
        let state = (Arc::clone(self), bytes);
        Body::from_stream(stream::unfold(state, move |(line, mut left)| async move {
            if left.is_empty() {
                return None;
            }
            let next = left.split_to(piece.min(left.len()));
            line.own.turn(next.len()).await;
            line.host.turn(next.len()).await;
            line.sent.fetch_add(next.len() as u64, Relaxed);
            Some((Ok::<_, Infallible>(next), (line, left)))
        }))
    }
}
