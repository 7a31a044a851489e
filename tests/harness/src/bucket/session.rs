//! Resumable uploads: objects that come in several requests, and are nothing before the last.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{SystemTime, UNIX_EPOCH},
};

use axum::body::Body;
use bytes::{Buf, Bytes};
use futures::StreamExt;
use tokio::task::spawn_blocking;

use super::{
    content::{Claimed, Content, joined},
    object::{Described, Stored},
    refusal::Refusal,
    request::{Conditions, Named},
    store::Store,
};

/// All but the last part of an upload is kept in multiples of this, in bytes.
const QUANTUM: usize = 256 << 10;

/// All uploads that were begun. They are remembered after their end, for clients that did not hear of it.
#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<Session>>>>);

/// One upload.
#[derive(Debug)]
pub(super) struct Session {
    named: Named,
    described: Described,
    conditions: Conditions,
    received: Vec<Bytes>,
    /// The object, whose memory goes with it when it is replaced or removed, or why there is none.
    ended: Option<Result<Weak<Stored>, Refusal>>,
}

/// Where a body belongs, as `Content-Range` says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    /// Where it begins. Nowhere: there is none, and the answer is what is wanted.
    first: Option<u64>,
    /// Whether it may be followed by others. Without its last byte, it is the last.
    is_part: bool,
    /// Length of the object.
    total: Option<u64>,
}

/// How an upload stands.
#[derive(Debug)]
pub(super) enum Standing {
    Ended(Arc<Stored>),
    /// So many bytes are here.
    Open(u64),
}

impl Sessions {
    /// Begins one. Gives what it is called.
    pub(super) fn begin(&self, named: Named, described: Described, conditions: Conditions) -> String {
        let mut sessions = self.sessions();
        // Clients remember uploads for days: what was begun with another server must not be found here.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let id = format!("{:x}-{}", now.as_nanos(), sessions.len());
        let session = Session { named, described, conditions, received: Vec::new(), ended: None };
        sessions.insert(id.clone(), Arc::new(tokio::sync::Mutex::new(session)));
        id
    }

    pub(super) fn get(&self, id: &str) -> Result<Arc<tokio::sync::Mutex<Session>>, Refusal> {
        self.sessions().get(id).cloned().ok_or(Refusal::NoUpload)
    }

    fn sessions(&self) -> MutexGuard<'_, BTreeMap<String, Arc<tokio::sync::Mutex<Session>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Span {
    /// Of a body without a header: it is all of the object.
    pub(super) const ALL: Self = Self { first: Some(0), is_part: false, total: None };

    /// Reads `bytes 0-9/*`, `bytes 0-9/10`, `bytes 0-*/*`, `bytes */10` or `bytes */*`.
    pub(super) fn of(header: &str) -> Option<Self> {
        let (range, total) = header.strip_prefix("bytes ")?.split_once('/')?;
        let number = |text: &str| match text {
            "*" => Some(None),
            text => text.parse::<u64>().ok().map(Some),
        };
        let total = number(total)?;
        match range.split_once('-') {
            None if range == "*" => Some(Self { first: None, is_part: true, total }),
            None => None,
            Some((first, last)) => {
                let first = Some(first.parse().ok()?);
                Some(Self { first, is_part: number(last)?.is_some(), total })
            }
        }
    }
}

impl Session {
    /// Takes a part of the object, or nothing. Its end makes the object, if the conditions are still met.
    pub(super) async fn take(
        &mut self,
        span: Span,
        body: Body,
        claimed: Option<&str>,
        store: &Store,
    ) -> Result<Standing, Refusal> {
        if let Some(ended) = &self.ended {
            read(body).await;
            let stored = ended.clone()?;
            return stored.upgrade().map(Standing::Ended).ok_or(Refusal::NoUpload);
        }
        // The request before may have broken off.
        self.cut();
        if let Some(first) = span.first {
            self.receive(first, body).await?;
        }
        let length = self.length();
        let is_whole = match span.total {
            Some(total) if total < length => {
                return Err(Refusal::invalid(format!("{length} bytes were sent of {total}.")));
            }
            Some(total) => total == length,
            None => !span.is_part,
        };
        if !is_whole {
            self.cut();
            return Ok(Standing::Open(self.length()));
        }
        let ended = self.finish(claimed, store).await;
        self.ended = Some(ended.as_ref().map(Arc::downgrade).map_err(Refusal::clone));
        ended.map(Standing::Ended)
    }

    /// Gives it up.
    pub(super) fn cancel(&mut self) {
        self.received.clear();
        self.ended.get_or_insert(Err(Refusal::NoUpload));
    }

    async fn receive(&mut self, first: u64, body: Body) -> Result<(), Refusal> {
        let here = self.length();
        let Some(mut again) = here.checked_sub(first).and_then(|again| usize::try_from(again).ok()) else {
            read(body).await;
            return Err(Refusal::invalid(format!("{here} bytes are here, and the next to come is {first}.")));
        };
        let mut pieces = body.into_data_stream();
        while let Some(piece) = pieces.next().await {
            let mut piece = piece.map_err(|error| Refusal::invalid(format!("It broke off: {error}")))?;
            let known = again.min(piece.len());
            again -= known;
            piece.advance(known);
            if !piece.is_empty() {
                self.received.push(piece);
            }
        }
        Ok(())
    }

    async fn finish(&mut self, claimed: Option<&str>, store: &Store) -> Result<Arc<Stored>, Refusal> {
        let mut all = self.described.claimed();
        if let Some(header) = claimed {
            all.add(header);
        }
        // Whoever says the one checksum does not look at the other, and it takes two seconds a gigabyte.
        let with_md5 = all.md5.is_some() || all.crc32c.is_none();
        let content = content(std::mem::take(&mut self.received), with_md5, &all).await?;
        store.put(&self.named, content, self.described.clone(), &self.conditions)
    }

    /// Forgets what is behind the last multiple, as the real ones do.
    fn cut(&mut self) {
        let mut left = usize::try_from(self.length()).unwrap_or(usize::MAX) / QUANTUM * QUANTUM;
        for piece in &mut self.received {
            piece.truncate(left);
            left -= piece.len();
        }
        self.received.retain(|piece| !piece.is_empty());
    }

    fn length(&self) -> u64 {
        self.received.iter().map(|piece| piece.len() as u64).sum()
    }
}

/// Takes what is of no use: a connection that ends with bytes unread may take the answer with it.
async fn read(body: Body) {
    let mut pieces = body.into_data_stream();
    while let Some(Ok(_)) = pieces.next().await {}
}

/// Pieces as the content of an object, when they are what they are said to be.
pub(super) async fn content(
    pieces: Vec<Bytes>,
    with_md5: bool,
    claimed: &Claimed,
) -> Result<Content, Refusal> {
    // Copying and summing gigabytes takes seconds.
    let made = spawn_blocking(move || joined(pieces).map(|bytes| Content::of(bytes, with_md5))).await;
    let content = made.map_err(std::io::Error::other).flatten().map_err(|error| Refusal::failed(&error))?;
    content.check(claimed)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_content_range_is_read() {
        let span = |first, is_part, total| Some(Span { first, is_part, total });
        assert_eq!(Span::of("bytes 5-9/*"), span(Some(5), true, None));
        assert_eq!(Span::of("bytes 0-9/10"), span(Some(0), true, Some(10)));
        assert_eq!(Span::of("bytes 0-*/*"), span(Some(0), false, None));
        assert_eq!(Span::of("bytes */10"), span(None, true, Some(10)));
        assert_eq!(Span::of("bytes */*"), span(None, true, None));
        for nonsense in ["", "bytes", "bytes 1/2", "bytes a-b/*", "items 0-1/2", "bytes 0-1/x"] {
            assert_eq!(Span::of(nonsense), None, "{nonsense}");
        }
    }
}
