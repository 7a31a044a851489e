//! How much a listing may be. A server that never stops must not fill memory, nor keep a transfer waiting for ever.

use std::{
    collections::HashSet,
    hash::{BuildHasher, RandomState},
};

use bytes::Bytes;
use futures::{Stream, StreamExt};

use crate::SourceError;

/// Longest page: the largest that any origin gives have a few MiB.
const PAGE_BYTES: usize = 64 << 20;
/// All pages of a listing together.
const LISTING_BYTES: usize = 1 << 30;
/// Most pages. Origins give up to a thousand objects or more in each.
const PAGES: usize = 100_000;
/// Most objects: some hundred MiB of memory.
const OBJECTS: usize = 1_000_000;

/// Why a listing is not followed any further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Endless {
    #[error("a page of its listing, {0}, is longer than {most} MiB", most = PAGE_BYTES >> 20)]
    Page(String),
    #[error("its listing, {0}, is longer than {most} MiB", most = LISTING_BYTES >> 20)]
    Listing(String),
    #[error("the listing repeats itself: it names a page of {0} as its next one that it named before")]
    Repeats(String),
    #[error("its listing, {0}, has more than {PAGES} pages")]
    Pages(String),
    #[error("it lists more than {OBJECTS} objects")]
    Objects,
}

impl Endless {
    pub(crate) fn of(&self, what: &str) -> SourceError {
        let what = what.to_owned();
        match self {
            Self::Objects => SourceError::Refused {
                what,
                why: self.to_string(),
                remedy: "name a directory that has fewer".to_owned(),
            },
            _ => SourceError::Protocol { what, detail: self.to_string() },
        }
    }
}

/// Why a body was not read to its end.
#[derive(Debug)]
pub(crate) enum Unread<E> {
    BrokeOff(E),
    Endless(Endless),
}

/// The pages of one listing so far.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    /// Hashes, with keys that no server knows: addresses may be long.
    asked: HashSet<u64>,
    hasher: RandomState,
    bytes: usize,
}

impl Pages {
    /// Notes that a page is asked for, which no listing asks for twice.
    pub(crate) fn ask(&mut self, url: &str) -> Result<(), Endless> {
        if !self.asked.insert(self.hasher.hash_one(url)) {
            return Err(Endless::Repeats(shown(url)));
        }
        if self.asked.len() > PAGES { Err(Endless::Pages(shown(url))) } else { Ok(()) }
    }

    /// How long the next page may be.
    pub(crate) fn room(&self) -> usize {
        PAGE_BYTES.min(LISTING_BYTES.saturating_sub(self.bytes))
    }

    /// Notes that a page of that length came.
    pub(crate) fn came(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Reads a page.
    pub(crate) async fn read<E>(
        &mut self,
        url: &str,
        body: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<Vec<u8>, Unread<E>> {
        let page = read(url, body, self.room()).await?;
        self.came(page.len());
        Ok(page)
    }
}

/// Refuses a listing of more objects than are held in memory.
pub(crate) fn check_count(objects: usize) -> Result<(), Endless> {
    if objects > OBJECTS { Err(Endless::Objects) } else { Ok(()) }
}

/// Reads a page of at most `room` bytes.
pub(crate) async fn read<E>(
    url: &str,
    body: impl Stream<Item = Result<Bytes, E>>,
    room: usize,
) -> Result<Vec<u8>, Unread<E>> {
    let mut body = std::pin::pin!(body);
    let mut page = Vec::new();
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(Unread::BrokeOff)?;
        if page.len() + piece.len() > room {
            let limit = if room == PAGE_BYTES { Endless::Page } else { Endless::Listing };
            return Err(Unread::Endless(limit(shown(url))));
        }
        page.extend_from_slice(&piece);
    }
    Ok(page)
}

/// Without its query, which may hold a signature.
fn shown(url: &str) -> String {
    url.split('?').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::stream;

    use super::*;

    const URL: &str = "https://h/tree?sig=secret";

    fn mebibytes(count: usize) -> impl Stream<Item = Result<Bytes, Infallible>> {
        let piece = Bytes::from(vec![b' '; 1 << 20]);
        stream::iter(0..count).map(move |_| Ok(piece.clone()))
    }

    #[tokio::test]
    async fn a_body_without_end_is_left_where_it_passes_the_limit() {
        let mut pages = Pages::default();
        assert_eq!(pages.read(URL, mebibytes(64)).await.unwrap().len(), PAGE_BYTES);
        let Err(Unread::Endless(error)) = pages.read(URL, mebibytes(usize::MAX)).await else {
            panic!("it was read")
        };
        let text = error.of("hf://o/n").to_string();
        assert!(text.contains("https://h/tree") && text.contains("64 MiB"), "{text}");
        assert!(!text.contains("secret"), "{text}");
        pages.came(LISTING_BYTES - PAGE_BYTES - 1);
        assert!(matches!(pages.read(URL, mebibytes(1)).await, Err(Unread::Endless(Endless::Listing(_)))));
    }

    #[test]
    fn a_page_is_asked_for_once_and_pages_and_objects_end() {
        let mut pages = Pages::default();
        pages.ask("u?1").unwrap();
        pages.ask("u?2").unwrap();
        assert_eq!(pages.ask("u?1"), Err(Endless::Repeats("u".to_owned())));
        let mut pages = Pages::default();
        let error = (0..).find_map(|at: u64| pages.ask(&at.to_string()).err());
        assert_eq!(error, Some(Endless::Pages(PAGES.to_string())));
        assert_eq!(check_count(OBJECTS), Ok(()));
        assert_eq!(check_count(OBJECTS + 1), Err(Endless::Objects));
    }
}
