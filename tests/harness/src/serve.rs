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
    let builder = Response::builder().header(header::ACCEPT_RANGES, "bytes");
    let answer = match wanted(headers, length) {
        Wanted::All => builder.body(Body::from(bytes.clone())),
        Wanted::Nothing => builder
            .status(StatusCode::RANGE_NOT_SATISFIABLE)
            .header(header::CONTENT_RANGE, format!("bytes */{length}"))
            .body(Body::empty()),
        Wanted::Part(range) => builder
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, format!("bytes {}-{}/{length}", range.start, range.end - 1))
            .body(Body::from(bytes.slice(range))),
    };
    answer.expect("these headers are valid")
}

/// What a request wants of something that has bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    All,
    Part(Range<usize>),
    /// Bytes that it does not have.
    Nothing,
}

/// Reads `Range`. What is not one range of bytes is as good as not said, as RFC 9110 has it.
pub(crate) fn wanted(headers: &HeaderMap, length: usize) -> Wanted {
    let said = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    match said.and_then(|text| range(text, length)) {
        None => Wanted::All,
        Some(range) if range.start < range.end => Wanted::Part(range),
        Some(_) => Wanted::Nothing,
    }
}

fn range(text: &str, length: usize) -> Option<Range<usize>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    match (first, last) {
        ("", suffix) => Some(length.saturating_sub(suffix.parse().ok()?)..length),
        (first, "") => Some(first.parse().ok()?..length),
        (first, last) => {
            let (first, last) = (first.parse().ok()?, last.parse::<usize>().ok()?);
            (first <= last).then(|| first..last.saturating_add(1).min(length))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_in_rfc_9110() {
        let read = |text: &str| {
            let headers = [(header::RANGE, text.parse().unwrap())].into_iter().collect();
            wanted(&headers, 10)
        };
        assert_eq!(read("bytes=0-0"), Wanted::Part(0..1));
        assert_eq!(read("bytes=3-"), Wanted::Part(3..10));
        assert_eq!(read("bytes=-4"), Wanted::Part(6..10));
        assert_eq!(read("bytes=5-99"), Wanted::Part(5..10));
        for beyond in ["bytes=10-12", "bytes=10-", "bytes=-0"] {
            assert_eq!(read(beyond), Wanted::Nothing, "{beyond}");
        }
        for none in ["items=0-1", "bytes=5-3", "bytes=-", "bytes=x-3", "bytes"] {
            assert_eq!(read(none), Wanted::All, "{none}");
        }
        assert_eq!(wanted(&HeaderMap::new(), 10), Wanted::All);
    }
}
