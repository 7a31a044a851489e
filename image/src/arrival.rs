//! One request: its bytes arrive, are summed, and lie in buffers as they will on the disk.

use bytes::Bytes;
use weightd_fetch::{FetchError, Line};
use weightd_store::io::{Buffer, BufferPool};
use weightd_types::{ByteRange, Crc32c, Piece};

use crate::{contents::Blob, steps::Ask};

/// What one request brought.
pub(crate) struct Arrived {
    pub(crate) ask: Ask,
    /// One for each of its pieces.
    pub(crate) pieces: Vec<ArrivedPiece>,
    /// Pieces that lie side by side, in the order of the blob.
    pub(crate) spans: Vec<Span>,
}

/// A piece that has arrived.
pub(crate) struct ArrivedPiece {
    pub(crate) crc: Crc32c,
    pub(crate) place: Place,
}

/// Where a piece's bytes are.
pub(crate) enum Place {
    /// In a span, from a byte of it on.
    Span(usize, usize),
    /// By themselves, because the piece is late.
    Late(Bytes),
}

/// Bytes that lie side by side in a blob.
pub(crate) struct Span {
    /// Where they begin in the blob.
    pub(crate) at: u64,
    pub(crate) buffer: Buffer,
}

impl Arrived {
    /// A piece's bytes; `at` counts those of the request.
    pub(crate) fn bytes(&self, at: usize, len: u64) -> &[u8] {
        match &self.pieces[at].place {
            Place::Late(bytes) => bytes,
            Place::Span(span, start) => &self.spans[*span].buffer[*start..*start + to_usize(len)],
        }
    }
}

/// Buffers for a request, taken all at once and in the order of requests: whoever is first has all it needs.
pub(crate) async fn buffers(pool: &BufferPool, blob: &Blob, late: &[bool], ask: &Ask) -> Vec<Buffer> {
    let mut buffers = Vec::new();
    let mut end = None;
    for at in ask.pieces.clone().filter(|at| !late[*at]) {
        let piece = &blob.wanted.placement.pieces()[at];
        if end != Some((piece.chunk, piece.blob)) {
            buffers.push(pool.acquire().await);
        }
        end = Some((piece.chunk, piece.blob + piece.object.len()));
    }
    buffers
}

/// Fetches a request's pieces into buffers that were taken for it.
pub(crate) async fn fetch(
    line: &Line,
    blob: &Blob,
    late: &[bool],
    ask: Ask,
    buffers: Vec<Buffer>,
) -> Result<Arrived, FetchError> {
    let all = &blob.wanted.placement.pieces()[ask.pieces.clone()];
    let mut arrived = Arrived { pieces: Vec::with_capacity(all.len()), spans: Vec::new(), ask };
    let (Some(first), Some(last)) = (all.first(), all.last()) else { return Ok(arrived) };
    let mut reader = Reader {
        reader: line.read(&blob.route, ByteRange::new(first.object.start, last.object.end)),
        rest: Bytes::new(),
    };
    let mut free = buffers.into_iter();
    for (piece, at) in all.iter().zip(arrived.ask.pieces.clone()) {
        let landed = match late[at] {
            true => reader.late(piece).await?,
            false => {
                if arrived.spans.last().is_none_or(|span| !span.continues_with(piece)) {
                    let buffer = free.next().expect("buffers were taken for all of its spans");
                    arrived.spans.push(Span { at: piece.blob, buffer });
                }
                let number = arrived.spans.len() - 1;
                let buffer = &mut arrived.spans[number].buffer;
                let start = buffer.len();
                let crc = reader.fill(piece, buffer).await?;
                ArrivedPiece { crc, place: Place::Span(number, start) }
            }
        };
        arrived.pieces.push(landed);
    }
    Ok(arrived)
}

impl Span {
    fn continues_with(&self, piece: &Piece) -> bool {
        let chunk = self.at / weightd_types::CHUNK_BYTES;
        chunk == u64::from(piece.chunk) && self.at + self.buffer.len() as u64 == piece.blob
    }
}

struct Reader<'l> {
    reader: weightd_fetch::RangeReader<'l>,
    /// What has arrived and belongs to the next piece.
    rest: Bytes,
}

impl Reader<'_> {
    async fn fill(&mut self, piece: &Piece, buffer: &mut Buffer) -> Result<Crc32c, FetchError> {
        let (mut left, mut crc) = (to_usize(piece.object.len()), Crc32c::EMPTY);
        while left > 0 {
            let part = self.next(left).await?;
            crc = buffer.extend_summed(&part, crc);
            left -= part.len();
        }
        Ok(crc)
    }

    async fn late(&mut self, piece: &Piece) -> Result<ArrivedPiece, FetchError> {
        let mut bytes = Vec::with_capacity(to_usize(piece.object.len()));
        while bytes.len() < bytes.capacity() {
            let part = self.next(bytes.capacity() - bytes.len()).await?;
            bytes.extend_from_slice(&part);
        }
        Ok(ArrivedPiece { crc: Crc32c::of(&bytes), place: Place::Late(bytes.into()) })
    }

    /// The next bytes, no more than so many.
    async fn next(&mut self, most: usize) -> Result<Bytes, FetchError> {
        if self.rest.is_empty() {
            self.rest = self.reader.next().await?.expect("the range is as long as its pieces");
        }
        Ok(self.rest.split_to(self.rest.len().min(most)))
    }
}

#[expect(clippy::cast_possible_truncation, reason = "only 64-bit targets are supported")]
pub(crate) const fn to_usize(len: u64) -> usize {
    len as usize
}
