//! `hf://`: the Hugging Face hub, or a mirror of it, through its HTTP API.
//!
//! A revision is resolved to its commit once, when it is listed; every read names that commit. The hub redirects
//! reads of large files to another host with a signed URL: the token stays behind, and the URL is not kept.

mod error;
mod listing;
mod token;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{AUTHORIZATION, CONTENT_RANGE, LOCATION, RANGE},
};
use reqwest::Response;
use url::Url;
use weightd_types::{ByteRange, Object, SourceUri, Version};

use crate::{
    ByteStream, Credential, Listed, Source, SourceError,
    answer::{Answer, broke_off, no_answer},
    cloud::error::no_ranges,
    config::Settings,
};

/// Most redirects that are followed; the hub needs two, for a repository that was renamed.
const REDIRECTS: usize = 5;

/// Connections and the token, shared by all `hf://` sources of one identity.
#[derive(Debug)]
pub(crate) struct HubClient {
    web: reqwest::Client,
    endpoint: Url,
    token: Option<HeaderValue>,
    is_stale: AtomicBool,
}

impl HubClient {
    /// Finds the token; `what` is named in errors. Nothing is sent yet.
    pub(crate) async fn new(
        settings: &Settings,
        what: &SourceUri,
        credential: &Credential,
        web: reqwest::Client,
    ) -> Result<Self, SourceError> {
        let token = match credential {
            Credential::Node => token::find(&settings.hub, &settings.environment).await?,
            Credential::Hub(token) => Some(token::header(token.reveal(), &what.to_string())?),
            _ => None,
        };
        let endpoint = settings.hub.endpoint.clone();
        Ok(Self { web, endpoint, token, is_stale: AtomicBool::new(false) })
    }

    /// Whether the hub refused the token: new sources look for a new one.
    pub(crate) fn is_stale(&self) -> bool {
        self.is_stale.load(Relaxed)
    }

    /// The endpoint and parts, each escaped.
    fn url(&self, parts: &[&str]) -> Url {
        let mut url = self.endpoint.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(parts);
        }
        url
    }

    /// Whether a URL is the hub's own, so that the token may be sent there.
    fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.endpoint.origin()
    }

    /// Sends a request and follows redirects, with the token only as long as they stay at the hub.
    async fn get(&self, url: Url, headers: &HeaderMap, what: &str) -> Result<Response, SourceError> {
        let mut url = url;
        for _ in 0..=REDIRECTS {
            let mut request = self.web.get(url.clone()).headers(headers.clone());
            if let Some(token) = self.token.as_ref().filter(|_| self.is_own(&url)) {
                request = request.header(AUTHORIZATION, token);
            }
            // Without its URL: a signed one is a secret until it expires.
            let response = request.send().await.map_err(|error| no_answer(what, &error.without_url()))?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            url = next(&url, &response).ok_or_else(|| SourceError::Protocol {
                what: what.to_owned(),
                detail: format!("{} without a place to go to", response.status()),
            })?;
        }
        let detail = format!("it redirects more than {REDIRECTS} times");
        Err(SourceError::Protocol { what: what.to_owned(), detail })
    }
}

fn next(url: &Url, response: &Response) -> Option<Url> {
    let next = url.join(response.headers().get(LOCATION)?.to_str().ok()?).ok()?;
    // Never from TLS to plain text.
    (next.scheme() == "https" || next.scheme() == url.scheme()).then_some(next)
}

/// A repository of the hub at a revision, or a directory of it.
#[derive(Debug)]
pub struct HubSource {
    client: Arc<HubClient>,
    uri: SourceUri,
}

impl HubSource {
    pub(crate) fn new(client: Arc<HubClient>, uri: SourceUri) -> Self {
        Self { client, uri }
    }

    fn noting_stale(&self, error: SourceError) -> SourceError {
        if matches!(error, SourceError::Unauthenticated { .. }) {
            self.client.is_stale.store(true, Relaxed);
        }
        error
    }

    /// Where an object's bytes are asked for.
    fn resolve_url(&self, object: &Object, what: &str) -> Result<Url, SourceError> {
        let Version::Git { commit, .. } = &object.version else {
            return Err(SourceError::Protocol {
                what: what.to_owned(),
                detail: format!("{} is not a version of the hub", object.version),
            });
        };
        let key = self.uri.object_key(&object.path);
        let parts = self.uri.authority().split('/').chain(["resolve", commit]).chain(key.split('/'));
        Ok(self.client.url(&parts.collect::<Vec<_>>()))
    }
}

#[async_trait]
impl Source for HubSource {
    async fn list(&self) -> Result<Vec<Listed>, SourceError> {
        listing::list(&self.client, &self.uri).await.map_err(|error| self.noting_stale(error))
    }

    async fn read(&self, object: &Object, range: ByteRange) -> Result<ByteStream, SourceError> {
        let what = self.uri.object_url(&object.path);
        let url = self.resolve_url(object, &what)?;
        let mut headers = HeaderMap::new();
        let asked = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
        let asked = HeaderValue::try_from(asked)
            .map_err(|error| SourceError::Protocol { what: what.clone(), detail: error.to_string() })?;
        headers.insert(RANGE, asked);
        let response = self.client.get(url, &headers, &what).await?;
        if !response.status().is_success() {
            let is_own = self.client.is_own(response.url());
            let answer = Answer::read(response).await;
            let error = error::of_read(&answer, &self.client, &self.uri, &what, object, is_own);
            return Err(self.noting_stale(error));
        }
        check_range(&response, object, range, &what)?;
        let body = response.bytes_stream();
        Ok(body.map_err(move |error| broke_off(&what, &error.without_url())).boxed())
    }
}

/// Checks that the answer is the range that was asked for.
fn check_range(
    response: &Response,
    object: &Object,
    range: ByteRange,
    what: &str,
) -> Result<(), SourceError> {
    let whole = range == ByteRange::new(0, object.size);
    if response.status() != StatusCode::PARTIAL_CONTENT {
        return if whole { Ok(()) } else { Err(no_ranges(what.to_owned())) };
    }
    let given = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let expected = format!("bytes {}-{}/{}", range.start, range.end.saturating_sub(1), object.size);
    if given != Some(&expected) {
        let detail = format!("asked for {expected:?} it gives {:?}", given.unwrap_or_default());
        return Err(SourceError::Protocol { what: what.to_owned(), detail });
    }
    Ok(())
}
