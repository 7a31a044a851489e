//! Spoiled bodies.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, future::pending, stream};
use weightd_types::ByteRange;

use super::Fault;
use crate::{ByteStream, SourceError};

/// The body of a read with a fault in it; faults of other kinds change nothing.
pub(super) fn spoil(body: ByteStream, range: ByteRange, fault: Fault, what: &str) -> ByteStream {
    match fault {
        Fault::Reset { after } => {
            let cause = "connection reset, on purpose".into();
            cut(body, after, Some(SourceError::Interrupted { what: what.to_owned(), cause }))
        }
        Fault::Short { after } => cut(body, after, None),
        Fault::Flip { at } => flip(body, at - range.start),
        Fault::Stall { after, lasting } => stall(body, after, lasting),
        Fault::Latency(_)
        | Fault::Throttle { .. }
        | Fault::Unavailable { .. }
        | Fault::Changed
        | Fault::Unauthenticated => body,
    }
}

/// The first bytes, and then the error, or the end.
fn cut(body: ByteStream, after: u64, error: Option<SourceError>) -> ByteStream {
    stream::unfold((body, after, error), |(mut body, left, error)| async move {
        if left == 0 {
            return error.map(|error| (Err(error), (body, 0, None)));
        }
        let piece = body.next().await?.map(|mut bytes: Bytes| {
            bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            bytes
        });
        let came = piece.as_ref().map_or(0, Bytes::len) as u64;
        Some((piece, (body, left - came, error)))
    })
    .boxed()
}

/// All bytes, one of them wrong.
fn flip(body: ByteStream, at: u64) -> ByteStream {
    let mut begin = 0;
    body.map(move |piece| {
        piece.map(|bytes| {
            let here = at.checked_sub(begin).and_then(|at| usize::try_from(at).ok());
            begin += bytes.len() as u64;
            match here.filter(|here| *here < bytes.len()) {
                None => bytes,
                Some(here) => {
                    let mut wrong = BytesMut::from(&bytes[..]);
                    wrong[here] ^= 1;
                    wrong.freeze()
                }
            }
        })
    })
    .boxed()
}

/// All bytes, with a pause among them.
fn stall(body: ByteStream, after: u64, lasting: Option<Duration>) -> ByteStream {
    stream::unfold((body, Bytes::new(), Some(after)), move |(mut body, mut rest, stall)| async move {
        if rest.is_empty() {
            rest = match body.next().await? {
                Ok(bytes) => bytes,
                error => return Some((error, (body, rest, stall))),
            };
        }
        match stall {
            None => Some((Ok(rest), (body, Bytes::new(), None))),
            Some(0) => {
                match lasting {
                    Some(duration) => tokio::time::sleep(duration).await,
                    None => pending().await,
                }
                Some((Ok(rest), (body, Bytes::new(), None)))
            }
            Some(left) => {
                let piece = rest.split_to(rest.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
                let left = left - piece.len() as u64;
                Some((Ok(piece), (body, rest, Some(left))))
            }
        }
    })
    .boxed()
}
