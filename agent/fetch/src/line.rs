//! How origins are asked: as often and as fast as the configuration has it, again while there is hope, and counted.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;
use weightd_source::{Credential, Opener, Resolution, ResolveError, Source, resolve};
use weightd_types::{ByteRange, HeaderError, Object, SafetensorsHeader, Selection, SourceUri};

use crate::{Config, FetchError, Metrics, RangeReader, range_reader::LONGEST_WAIT, throttle::Throttle};

/// How much of an object is asked for in the hope that its whole header is in it: enough for a thousand tensors.
const HEADER_GUESS_BYTES: u64 = 128 << 10;
/// Times a header that cannot be right is fetched: the first time, the way may have damaged it.
const HEADER_ATTEMPTS: u32 = 2;
/// Attempts to list a source.
const LISTING_ATTEMPTS: u32 = 4;

/// What all that ask origins share.
#[derive(Debug)]
pub struct Line {
    pub(crate) config: Config,
    pub(crate) metrics: Metrics,
    pub(crate) throttle: Throttle,
}

/// Where an object is.
#[derive(Debug, Clone)]
pub struct Route {
    /// Who has it.
    pub source: Arc<dyn Source>,
    /// The object, as listed.
    pub object: Object,
    /// Its full name, for people.
    pub url: String,
}

impl Line {
    /// One that has asked nobody yet.
    pub fn new(config: Config) -> Self {
        Self { throttle: Throttle::new(config.bandwidth_bytes), metrics: Metrics::default(), config }
    }

    /// What it counts.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Lists a source once as the node, and pins what is there.
    ///
    /// # Errors
    /// [`FetchError::Source`], [`FetchError::Resolve`].
    pub async fn resolve(
        &self,
        opener: &dyn Opener,
        uri: &SourceUri,
        selection: &Selection,
    ) -> Result<Resolution, FetchError> {
        let Config { attempts, backoff, backoff_limit, .. } = self.config;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let source = opener.open_as(uri, &Credential::Node).await?;
            match resolve(source.as_ref(), uri, selection).await {
                Err(error) if error.is_retryable() && attempt < attempts.min(LISTING_ATTEMPTS) => {
                    self.metrics.retries.inc();
                    let wait = backoff.saturating_mul(1 << attempt).min(backoff_limit);
                    tracing::debug!(%error, attempt, "a listing failed; trying again");
                    sleep(wait.max(asked_wait(&error))).await;
                }
                other => return Ok(other?),
            }
        }
    }

    /// A range of an object, whatever it takes.
    pub fn read<'l>(&'l self, route: &'l Route, range: ByteRange) -> RangeReader<'l> {
        RangeReader::new(self, route, range)
    }

    /// The header of a safetensors object, checked.
    ///
    /// # Errors
    /// [`FetchError::Header`] when it cannot be one, also when it is fetched again; else why it could not be fetched.
    pub async fn header(&self, route: &Route) -> Result<SafetensorsHeader, FetchError> {
        let mut attempt = 1;
        loop {
            match self.fetch_header(route).await? {
                Ok(header) => return Ok(header),
                Err(source) if attempt == HEADER_ATTEMPTS => {
                    return Err(FetchError::Header { url: route.url.clone(), source });
                }
                Err(error) => {
                    tracing::warn!(url = route.url, %error, "the header cannot be right; fetching it again");
                }
            }
            attempt += 1;
        }
    }

    async fn fetch_header(
        &self,
        route: &Route,
    ) -> Result<Result<SafetensorsHeader, HeaderError>, FetchError> {
        let size = route.object.size;
        if size == 0 {
            return Ok(Err(HeaderError::TooShort(0)));
        }
        let read = |range| self.read(route, range).collect();
        let first = read(ByteRange::new(0, HEADER_GUESS_BYTES.min(size))).await?;
        let length = match SafetensorsHeader::length(&first, size) {
            Ok(length) => length,
            Err(error) => return Ok(Err(error)),
        };
        let raw = if length <= first.len() as u64 {
            first.slice(..usize::try_from(length).expect("no longer than a slice that exists"))
        } else {
            let rest = read(ByteRange::new(first.len() as u64, length)).await?;
            [first, rest].concat().into()
        };
        Ok(SafetensorsHeader::parse(raw, size))
    }
}

/// How long an origin asks to wait, within reason.
fn asked_wait(error: &ResolveError) -> Duration {
    match error {
        ResolveError::Source(error) => error.retry_after().unwrap_or_default().min(LONGEST_WAIT),
        ResolveError::Selection(_) | ResolveError::Snapshot(_) => Duration::ZERO,
    }
}
