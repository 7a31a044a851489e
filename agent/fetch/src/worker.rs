//! One request: bytes stream in, are summed piece by piece, and leave for the disk a chunk at a time.
//!
//! A worker holds one chunk buffer, the place in memory where the chunk is to stay if someone wants it there, filled with
//! bytes that lie side by side in the blob. It is written when it reaches the end of its chunk, or when the next piece lies
//! elsewhere. Writes go on while the next bytes stream in, and after the request has ended: the pool bounds how many of its
//! buffers wait for the disk. What lies where it is to stay waits there.

use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinSet;
use weightd_store::{PartialBlob, StoreError, io::Buffer};
use weightd_types::{Crc32c, Piece};

use crate::{
    FetchError, Request,
    fetcher::{Arriving, Inner},
    flight::Flying,
    range_reader::RangeReader,
};

/// Bytes that lie side by side in a blob, and the pieces they complete.
struct Span {
    chunk: u32,
    blob: u64,
    buffer: Buffer,
    pieces: Vec<(usize, Crc32c)>,
    /// Length of the buffer up to the last completed piece.
    whole: usize,
}

/// Streams a request's pieces into the store.
pub(crate) async fn run(
    inner: &Arc<Inner>,
    flying: &Arc<Flying>,
    request: &Request,
    arriving: Arriving,
) -> Result<(), FetchError> {
    let mut writes = JoinSet::new();
    let streamed = stream(inner, flying, request, &mut writes).await;
    drop(arriving);
    // Also after a failure: what arrived whole is kept.
    let mut outcome = streamed;
    while let Some(written) = writes.join_next().await {
        let written = written.unwrap_or(Err(StoreError::Closed));
        outcome = outcome.and(written.map_err(FetchError::from));
    }
    outcome
}

type Writes = JoinSet<Result<(), StoreError>>;

async fn stream(
    inner: &Arc<Inner>,
    flying: &Arc<Flying>,
    request: &Request,
    writes: &mut Writes,
) -> Result<(), FetchError> {
    let route = &flying.route;
    let mut reader = inner.line.read(route, request.object).with_urgency(request.urgency.clone());
    let mut arrived = Bytes::new();
    let mut span: Option<Span> = None;
    for index in request.pieces.clone() {
        if !inner.planner().begins(request, index) {
            break;
        }
        let piece = flying.partial.placement().pieces()[index];
        if let Some(open) = span.take_if(|open| !open.continues_with(&piece)) {
            write(inner, flying, request, open, writes);
        }
        let open = match &mut span {
            Some(open) => open,
            empty => {
                let buffer = match flying.partial.landing_buffer(&piece).await {
                    Some(lent) => lent,
                    None => inner.store.pool().acquire().await,
                };
                empty.insert(Span {
                    chunk: piece.chunk,
                    blob: piece.blob,
                    buffer,
                    pieces: Vec::new(),
                    whole: 0,
                })
            }
        };
        let filled = fill(&mut reader, &mut arrived, open, piece.object.len(), flying).await;
        match filled {
            Ok(crc) => open.complete(index, crc),
            Err(error) => {
                write(inner, flying, request, span.take().expect("it was just filled"), writes);
                return Err(error);
            }
        }
    }
    if let Some(open) = span {
        write(inner, flying, request, open, writes);
    }
    Ok(())
}

/// Adds one piece to a span, and sums it.
async fn fill(
    reader: &mut RangeReader<'_>,
    arrived: &mut Bytes,
    span: &mut Span,
    piece_len: u64,
    flying: &Flying,
) -> Result<Crc32c, FetchError> {
    let mut left = usize::try_from(piece_len).expect("a piece is no longer than a chunk");
    let mut crc = Crc32c::EMPTY;
    while left > 0 {
        if arrived.is_empty() {
            *arrived = reader.next().await?.expect("the range is as long as its pieces");
            flying.progress.add_fetched(arrived.len() as u64);
        }
        let part = arrived.split_to(arrived.len().min(left));
        crc = span.buffer.extend_summed(&part, crc);
        left -= part.len();
    }
    Ok(crc)
}

impl Span {
    fn continues_with(&self, piece: &Piece) -> bool {
        self.chunk == piece.chunk && self.blob + self.buffer.len() as u64 == piece.blob
    }

    fn complete(&mut self, piece: usize, crc: Crc32c) {
        self.pieces.push((piece, crc));
        self.whole = self.buffer.len();
    }
}

/// Sends what is whole of a span to the disk, and tells the planner when it is there.
fn write(inner: &Arc<Inner>, flying: &Arc<Flying>, request: &Request, mut span: Span, writes: &mut Writes) {
    if span.pieces.is_empty() {
        return;
    }
    span.buffer.set_len(span.whole);
    let (inner, flying, request) = (Arc::clone(inner), Arc::clone(flying), request.clone());
    writes.spawn(async move {
        let partial: &PartialBlob = &flying.partial;
        partial.write(span.blob, span.buffer, &span.pieces).await?;
        flying.progress.add_present(span.whole as u64);
        let mut planner = inner.planner();
        // A reader may have found one of them rotten since; it is asked for again when the request ends.
        let here = span.pieces.iter().map(|(piece, _)| *piece).filter(|&piece| partial.has_piece(piece));
        planner.landed(&request, here);
        Ok(())
    });
}
