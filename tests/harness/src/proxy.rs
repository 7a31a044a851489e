//! A proxy before any HTTP server that spoils what passes.

mod body;

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Result;
use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{HeaderMap, Response, StatusCode, header},
};
use tokio::time::sleep;

use crate::{
    serve::{self, RequestLog, Serving, plain},
    upstream::{self, Upstream},
};
use body::Pace;

/// What goes wrong with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The server is not asked; the client gets this status, with `Retry-After` in seconds if given.
    Status {
        /// Such as 503.
        code: u16,
        /// What `Retry-After` says.
        retry_after: Option<u64>,
    },
    /// The answer begins so much later.
    Delay(Duration),
    /// The connection breaks after so many bytes of the body, fewer than were announced.
    ResetAfter(u64),
    /// After so many bytes of the body nothing comes for so long; then the rest.
    Stall {
        /// Bytes that come at once.
        after: u64,
        /// How long nothing comes.
        pause: Duration,
    },
    /// One bit of this byte of the object is wrong, whichever range it is in.
    Flip(u64),
}

/// A fault, where it strikes and how often.
#[derive(Debug)]
struct Planned {
    needle: String,
    times: u32,
    fault: Fault,
}

/// A running proxy.
#[derive(Debug)]
pub struct FaultProxy {
    serving: Serving,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    upstream: Upstream,
    planned: Mutex<Vec<Planned>>,
    pace: Arc<Pace>,
    log: RequestLog,
}

impl FaultProxy {
    /// Starts one before the server at `upstream`: scheme, host and port.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(upstream: &str) -> Result<Self> {
        Self::start_at(Ipv4Addr::LOCALHOST.into(), upstream).await
    }

    /// The same on another of this machine's addresses than loopback.
    ///
    /// # Errors
    /// When no port can be bound there.
    pub async fn start_at(address: IpAddr, upstream: &str) -> Result<Self> {
        let shared = Arc::new(Shared {
            upstream: Upstream::new(upstream)?,
            planned: Mutex::default(),
            pace: Arc::default(),
            log: RequestLog::default(),
        });
        let handler = shared.clone();
        let routes =
            Router::new().fallback(move |request: Request| async move { handler.pass(request).await });
        Ok(Self { serving: Serving::start_at(address, routes).await?, shared })
    }

    /// Its own scheme, host and port: what the client is given in place of the server's.
    pub fn url(&self) -> String {
        self.serving.url()
    }

    /// Lets `fault` strike the next `times` requests whose method, path and query contain `needle`, as in
    /// `GET /b/o/model`. Of several that fit a request, the first that is left strikes.
    pub fn inject(&self, needle: &str, times: u32, fault: Fault) {
        self.planned().push(Planned { needle: needle.to_owned(), times, fault });
    }

    /// Forgets all faults.
    pub fn clear(&self) {
        self.planned().clear();
    }

    /// Lets all answers together pass at this rate; zero lifts the limit.
    pub fn limit(&self, bytes_per_second: u64) {
        self.shared.pace.set(bytes_per_second);
    }

    /// Bytes of all answers that passed so far, without their headers.
    pub fn bytes(&self) -> u64 {
        self.shared.pace.passed()
    }

    /// All requests so far, also those that were struck.
    pub fn requests(&self) -> &RequestLog {
        &self.shared.log
    }

    fn planned(&self) -> std::sync::MutexGuard<'_, Vec<Planned>> {
        self.shared.planned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    async fn pass(&self, request: Request) -> Response<Body> {
        self.log.record(&request);
        let fault = self.strike(&request);
        match fault {
            Some(Fault::Status { code, retry_after }) => return refusal(code, retry_after),
            Some(Fault::Delay(delay)) => sleep(delay).await,
            _ => {}
        }
        let answer = match self.upstream.ask(request).await {
            Ok(answer) => answer,
            Err(error) => return plain(StatusCode::BAD_GATEWAY, &error.to_string()),
        };
        let head = upstream::head(&answer);
        let first = first_byte(answer.headers());
        let body = body::spoiled(answer, first, fault, self.pace.clone());
        head.map(|()| body)
    }

    /// The fault for this request, counted.
    fn strike(&self, request: &Request) -> Option<Fault> {
        let line = format!("{} {}", request.method(), request.uri());
        let mut planned = self.planned.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = planned.iter_mut().find(|planned| planned.times > 0 && line.contains(&planned.needle))?;
        fits.times -= 1;
        Some(fits.fault)
    }
}

/// Where in the object the body begins.
fn first_byte(headers: &HeaderMap) -> u64 {
    let range = headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let first = range.and_then(|range| range.strip_prefix("bytes ")?.split_once('-'));
    first.and_then(|(first, _)| first.parse().ok()).unwrap_or(0)
}

fn refusal(code: u16, retry_after: Option<u64>) -> Response<Body> {
    let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut answer = serve::plain(status, "a fault was asked for");
    if let Some(seconds) = retry_after {
        answer.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    answer
}

#[cfg(test)]
mod tests;
