//! What our own HTTP servers have in common: a listener, a log of requests, ranges.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Method, Request, Response, StatusCode, header},
};
use bytes::Bytes;
use tokio::{net::TcpListener, task::JoinHandle};

/// A request that a server got.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// `GET`, `HEAD`, ...
    pub method: Method,
    /// Path and query as sent.
    pub target: String,
    /// All headers.
    pub headers: HeaderMap,
}

impl Recorded {
    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// All requests a server got, in order. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct RequestLog(Arc<Mutex<Vec<Recorded>>>);

impl RequestLog {
    /// What came so far.
    pub fn all(&self) -> Vec<Recorded> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets what came so far.
    pub fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(crate) fn record<B>(&self, request: &Request<B>) {
        let target = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
        let recorded =
            Recorded { method: request.method().clone(), target, headers: request.headers().clone() };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(recorded);
    }
}

/// A server in this process, ended when dropped.
#[derive(Debug)]
pub(crate) struct Serving {
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Serving {
    /// Binds a loopback port before it returns, so that clients may connect at once.
    pub(crate) async fn start(routes: Router) -> Result<Self> {
        Self::start_at(Ipv4Addr::LOCALHOST.into(), routes).await
    }

    /// The same on another of this machine's addresses, such as that on the bridge of a test's own cluster.
    pub(crate) async fn start_at(address: IpAddr, routes: Router) -> Result<Self> {
        let listener = TcpListener::bind((address, 0)).await?;
        let address = listener.local_addr()?;
        // The error of a server that cannot accept shows in the clients.
        let task = tokio::spawn(async move { drop(axum::serve(listener, routes).await) });
        Ok(Self { address, task })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A client for loopback that no proxy of the environment gets between.
pub(crate) fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().expect("a client without files or names to resolve builds")
}

/// An answer without a body of interest.
pub(crate) fn plain(status: StatusCode, text: &str) -> Response<Body> {
    let mut answer = Response::new(Body::from(text.to_owned()));
    *answer.status_mut() = status;
    answer
}

/// The part of `bytes` a request asks for, with the headers of RFC 9110 that say so.
pub(crate) fn ranged(bytes: &Bytes, headers: &HeaderMap) -> Response<Body> {
    let length = bytes.len();
    let wanted = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let builder = Response::builder().header(header::ACCEPT_RANGES, "bytes");
    let answer = match wanted.map(|text| range(text, length)) {
        None => builder.body(Body::from(bytes.clone())),
        Some(None) => builder
            .status(StatusCode::RANGE_NOT_SATISFIABLE)
            .header(header::CONTENT_RANGE, format!("bytes */{length}"))
            .body(Body::empty()),
        Some(Some(range)) => builder
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, format!("bytes {}-{}/{length}", range.start, range.end - 1))
            .body(Body::from(bytes.slice(range))),
    };
    answer.expect("these headers are valid")
}

/// One range of bytes; several at once are not asked for by anything here.
pub(crate) fn range(text: &str, length: usize) -> Option<Range<usize>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let range = match (first, last) {
        ("", suffix) => length.saturating_sub(suffix.parse().ok()?)..length,
        (first, "") => first.parse().ok()?..length,
        (first, last) => first.parse().ok()?..last.parse::<usize>().ok()?.saturating_add(1).min(length),
    };
    (range.start < range.end).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_in_rfc_9110() {
        assert_eq!(range("bytes=0-0", 10), Some(0..1));
        assert_eq!(range("bytes=3-", 10), Some(3..10));
        assert_eq!(range("bytes=-4", 10), Some(6..10));
        assert_eq!(range("bytes=5-99", 10), Some(5..10));
        assert_eq!(range("bytes=10-12", 10), None);
        assert_eq!(range("items=0-1", 10), None);
    }
}
