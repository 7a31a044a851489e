//! The body of an answer on its way through.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};
use tokio::time::{Instant, sleep, sleep_until};

use super::Fault;

/// A rate that all answers share, and what passed of all of them.
#[derive(Debug, Default)]
pub(super) struct Pace {
    bytes_per_second: AtomicU64,
    passed: AtomicU64,
    free_at: Mutex<Option<Instant>>,
}

impl Pace {
    pub(super) fn set(&self, bytes_per_second: u64) {
        self.bytes_per_second.store(bytes_per_second, Ordering::Relaxed);
        *self.free_at.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(super) fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    /// Waits for the turn of so many bytes.
    async fn turn(&self, bytes: usize) {
        self.passed.fetch_add(bytes as u64, Ordering::Relaxed);
        let rate = self.bytes_per_second.load(Ordering::Relaxed);
        if rate == 0 {
            return;
        }
        let until = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let start = free_at.unwrap_or_else(Instant::now).max(Instant::now());
            let end = start + Duration::from_micros(bytes as u64 * 1_000_000 / rate);
            *free_at = Some(end);
            end
        };
        sleep_until(until).await;
    }
}

/// What is known between two pieces of a body.
struct Passing {
    answer: stream::BoxStream<'static, reqwest::Result<Bytes>>,
    /// Bytes of the body that passed.
    passed: u64,
    /// Where in the object the body begins.
    first: u64,
    fault: Option<Fault>,
    pace: Arc<Pace>,
}

/// The answer's body with `fault` applied.
pub(super) fn spoiled(answer: reqwest::Response, first: u64, fault: Option<Fault>, pace: Arc<Pace>) -> Body {
    let answer = answer.bytes_stream().boxed();
    Body::from_stream(pieces(Passing { answer, passed: 0, first, fault, pace }))
}

fn pieces(passing: Passing) -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::unfold(Some(passing), |passing| async {
        let mut passing = passing?;
        let item = match passing.answer.next().await? {
            Ok(piece) => passing.piece(piece).await,
            Err(error) => Err(io::Error::other(error)),
        };
        // An error ends the stream, which makes the server break the connection.
        let next = item.is_ok().then_some(passing);
        Some((item, next))
    })
}

impl Passing {
    async fn piece(&mut self, piece: Bytes) -> io::Result<Bytes> {
        let start = self.passed;
        let end = start + piece.len() as u64;
        self.passed = end;
        let piece = match self.fault {
            Some(Fault::ResetAfter(after)) if start >= after => {
                // What came before must be sent first: a break throws away what the server still holds.
                sleep(Duration::from_millis(20)).await;
                return Err(io::Error::from(io::ErrorKind::ConnectionReset));
            }
            Some(Fault::ResetAfter(after)) if end > after => {
                let kept = usize::try_from(after - start).unwrap_or(usize::MAX).min(piece.len());
                // The next piece, which may not exist, breaks the connection; so may an empty one.
                self.answer = stream::once(async { Ok(Bytes::new()) }).boxed();
                self.passed = after;
                piece.slice(..kept)
            }
            Some(Fault::Stall { after, pause }) if end > after => {
                self.fault = None;
                sleep(pause).await;
                piece
            }
            Some(Fault::Flip(at)) => flipped(piece, at, self.first + start),
            _ => piece,
        };
        self.pace.turn(piece.len()).await;
        Ok(piece)
    }
}

/// `piece`, which begins at `start` of the object, with a bit of the object's byte `at` flipped.
fn flipped(piece: Bytes, at: u64, start: u64) -> Bytes {
    let Some(index) = at.checked_sub(start).and_then(|index| usize::try_from(index).ok()) else {
        return piece;
    };
    if index >= piece.len() {
        return piece;
    }
    let mut changed = BytesMut::from(&piece[..]);
    changed[index] ^= 1;
    changed.freeze()
}
