//! The server behind one of ours: requests go on to it as they came.

use anyhow::Result;
use axum::{
    extract::Request,
    http::{HeaderMap, Response, header},
};

/// A server that requests are passed on to.
#[derive(Debug)]
pub(crate) struct Upstream {
    url: String,
    client: reqwest::Client,
}

impl Upstream {
    /// The one at this scheme, host and port. No proxy of the environment gets between, and no redirect is followed.
    pub(crate) fn new(url: &str) -> Result<Self> {
        let client =
            reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build()?;
        Ok(Self { url: url.trim_end_matches('/').to_owned(), client })
    }

    /// Asks it the same.
    pub(crate) async fn ask(&self, request: Request) -> reqwest::Result<reqwest::Response> {
        let (parts, body) = request.into_parts();
        let url = format!("{}{}", self.url, parts.uri);
        let mut headers = end_to_end(&parts.headers);
        headers.remove(header::HOST);
        let body = reqwest::Body::wrap_stream(body.into_data_stream());
        let mut forwarded = self.client.request(parts.method.clone(), url).headers(headers);
        if parts.headers.contains_key(header::CONTENT_LENGTH)
            || parts.headers.contains_key(header::TRANSFER_ENCODING)
        {
            forwarded = forwarded.body(body);
        }
        forwarded.send().await
    }
}

/// Status and headers of its answer, for whoever asked.
pub(crate) fn head(answer: &reqwest::Response) -> Response<()> {
    let mut head = Response::new(());
    *head.status_mut() = answer.status();
    *head.headers_mut() = end_to_end(answer.headers());
    head
}

/// Headers without those that speak of one connection only.
fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let mut kept = headers.clone();
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE, header::TE] {
        kept.remove(name);
    }
    kept
}
