//! Keeps what the library drops: the status, the message and `Retry-After` of an answer other than success, and
//! the names in a listing that it does not take; and ends listings that do not end themselves.

use std::{cell::RefCell, future::Future};

use async_trait::async_trait;
use futures::StreamExt;
use object_store::{
    ClientOptions,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
        ReqwestConnector,
    },
};

use super::names;
use crate::{
    answer::{Answer, BODY_BYTES},
    pages::{self, Endless, Pages, Unread},
};

tokio::task_local! {
    /// The pages of the listing that this task is at: the library has no place for what belongs to one listing.
    static PAGES: RefCell<Pages>;
}

/// Runs one listing: none of its pages is asked for twice.
pub(crate) async fn one_listing<T>(listing: impl Future<Output = T>) -> T {
    PAGES.scope(RefCell::default(), listing).await
}

/// Turns every answer other than success into an [`Answer`] in the chain of causes: the library's own errors have neither
/// `Retry-After` nor a status that can be asked for.
#[derive(Debug)]
pub(crate) struct Connector {
    /// What sends requests; without it the library's own client, which follows redirects wherever they lead.
    pub(crate) confined: Option<reqwest::Client>,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = match &self.confined {
            Some(confined) => HttpClient::new(confined.clone()),
            None => ReqwestConnector::default().connect(options)?,
        };
        Ok(HttpClient::new(Kept(client)))
    }
}

/// A client whose answers are kept whole.
#[derive(Debug)]
pub(super) struct Kept(pub(super) HttpClient);

#[async_trait]
impl HttpService for Kept {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let page = asks_for_listing(&request).then(|| request.uri().to_string());
        if let Some(Ok(asked)) =
            page.as_deref().map(|url| PAGES.try_with(|pages| pages.borrow_mut().ask(url)))
        {
            asked.map_err(endless)?;
        }
        let response = self.0.execute(request).await?;
        if response.status().is_success() {
            return match page {
                Some(url) => listing(response, &url).await,
                None => Ok(response),
            };
        }
        let (parts, body) = response.into_parts();
        let mut pieces = body.bytes_stream();
        let mut text = Vec::new();
        while let Some(Ok(piece)) = pieces.next().await {
            text.extend_from_slice(&piece);
            if text.len() > BODY_BYTES {
                break;
            }
        }
        // A kind that the library never retries.
        Err(HttpError::new(HttpErrorKind::Unknown, Answer::new(parts.status, &parts.headers, &text)))
    }
}

/// Whether the answer holds names: of S3, of Azure, or of a WebDAV server.
fn asks_for_listing(request: &HttpRequest) -> bool {
    let mut query = request.uri().query().unwrap_or_default().split('&');
    request.method().as_str() == "PROPFIND" || query.any(|part| part == "list-type=2" || part == "comp=list")
}

/// The library reads a listing as a whole too, so nothing more is held in memory.
async fn listing(response: HttpResponse, url: &str) -> Result<HttpResponse, HttpError> {
    let (parts, body) = response.into_parts();
    let room = PAGES.try_with(|pages| pages.borrow().room()).unwrap_or_else(|_| Pages::default().room());
    let page = pages::read(url, body.bytes_stream(), room).await.map_err(|unread| match unread {
        Unread::BrokeOff(error) => error,
        Unread::Endless(error) => endless(error),
    })?;
    // Outside of a listing there is nothing to count.
    let _ = PAGES.try_with(|pages| pages.borrow_mut().came(page.len()));
    Ok(HttpResponse::from_parts(parts, names::carry(page.into()).into()))
}

/// Of a kind that the library never retries.
fn endless(error: Endless) -> HttpError {
    HttpError::new(HttpErrorKind::Unknown, error)
}
