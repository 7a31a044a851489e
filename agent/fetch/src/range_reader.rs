//! One range of one object, whatever it takes: a request that stalls gets a second one beside it, a broken one resumes
//! at the byte reached.

use std::{fmt, future::Future, time::Duration};

use bytes::Bytes;
use futures::StreamExt;
use tokio::time::timeout;
use weightd_source::{ByteStream, SourceError};
use weightd_types::ByteRange;

use crate::{Config, FetchError, Line, Route, urgency::Urgency};

/// Longest wait an origin can ask for.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// Delivers a range in order, retrying as long as there is hope.
pub struct RangeReader<'a> {
    line: &'a Line,
    route: &'a Route,
    /// What was not delivered yet.
    left: ByteRange,
    stream: Option<ByteStream>,
    urgency: Urgency,
    /// Failures since the last byte.
    failures: u32,
}

impl fmt::Debug for RangeReader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RangeReader")
            .field("url", &self.route.url)
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

impl<'a> RangeReader<'a> {
    pub(crate) fn new(line: &'a Line, route: &'a Route, range: ByteRange) -> Self {
        let urgency = Urgency::awaited();
        Self { line, route, left: range, stream: None, urgency, failures: 0 }
    }

    /// Lets others go first, as long as nobody waits for it.
    pub(crate) fn with_urgency(mut self, urgency: Urgency) -> Self {
        self.urgency = urgency;
        self
    }

    /// The next bytes; never empty. `None` when the range is delivered.
    ///
    /// # Errors
    /// [`FetchError::Source`], [`FetchError::Exhausted`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        if self.left.is_empty() {
            return Ok(None);
        }
        loop {
            match self.attempt().await {
                Ok(bytes) => {
                    self.failures = 0;
                    self.left.start += bytes.len() as u64;
                    self.line.metrics.fetched_bytes.inc_by(bytes.len() as u64);
                    self.line.throttle.pass(bytes.len(), &self.urgency).await;
                    return Ok(Some(bytes));
                }
                Err(error) => {
                    self.stream = None;
                    self.recover(error).await?;
                }
            }
        }
    }

    /// Everything that is left, in one piece; for ranges known to be small.
    ///
    /// # Errors
    /// As of [`RangeReader::next`].
    pub async fn collect(mut self) -> Result<Bytes, FetchError> {
        let mut whole = Vec::new();
        while let Some(bytes) = self.next().await? {
            whole.extend_from_slice(&bytes);
        }
        Ok(whole.into())
    }

    async fn attempt(&mut self) -> Result<Bytes, SourceError> {
        let Config { stall, give_up, .. } = self.line.config;
        let (first, left) = (self.stream.take(), self.left);
        let mut primary = std::pin::pin!(self.first_bytes(first, left));
        if let Ok(outcome) = timeout(stall, &mut primary).await {
            return self.keep(outcome);
        }
        // Nothing for so long: ask once more beside it, and take whichever delivers first.
        self.line.metrics.hedges.inc();
        tracing::debug!(url = self.route.url, range = %left, ?stall, "nothing arrives; asking once more beside it");
        let mut hedge = std::pin::pin!(self.first_bytes(None, left));
        let outcome = timeout(give_up, either(&mut primary, &mut hedge)).await;
        self.keep(outcome.unwrap_or_else(|_| Err(self.stalled(stall + give_up))))
    }

    fn keep(&mut self, outcome: Result<(ByteStream, Bytes), SourceError>) -> Result<Bytes, SourceError> {
        let (stream, bytes) = outcome?;
        self.stream = Some(stream);
        Ok(bytes)
    }

    /// The next bytes of a stream, opened first when there is none.
    fn first_bytes(
        &self,
        stream: Option<ByteStream>,
        left: ByteRange,
    ) -> impl Future<Output = Result<(ByteStream, Bytes), SourceError>> + use<'a> {
        let (line, Route { source, object, url }) = (self.line, self.route);
        async move {
            let mut stream = match stream {
                Some(stream) => stream,
                None => {
                    line.metrics.requests.inc();
                    source.read(object, left).await?
                }
            };
            loop {
                let bytes = match stream.next().await {
                    Some(bytes) => bytes?,
                    None => return Err(short_body(url, left)),
                };
                if bytes.len() as u64 > left.len() {
                    let detail = format!("more bytes than {left} were sent");
                    return Err(SourceError::Protocol { what: url.to_owned(), detail });
                }
                if !bytes.is_empty() {
                    return Ok((stream, bytes));
                }
            }
        }
    }

    /// Waits before the next attempt, or gives up.
    async fn recover(&mut self, error: SourceError) -> Result<(), FetchError> {
        // While nobody may be asked, requests in flight are for those that can go on.
        if !error.is_retryable() || error.is_paused() {
            return Err(error.into());
        }
        if matches!(error, SourceError::Throttled { .. }) {
            self.line.metrics.throttled.inc();
        }
        self.failures += 1;
        let Config { attempts, backoff, backoff_limit, .. } = self.line.config;
        if self.failures >= attempts {
            let (url, range) = (self.route.url.clone(), self.left);
            return Err(FetchError::Exhausted { url, range, attempts, source: error.into() });
        }
        self.line.metrics.retries.inc();
        let doubled = backoff.saturating_mul(1 << (self.failures - 1).min(16)).min(backoff_limit);
        let asked = error.retry_after().map(|wait| wait.min(LONGEST_WAIT));
        let wait = asked.unwrap_or_default().max(spread(doubled, self.left.start, self.failures));
        tracing::debug!(%error, ?wait, attempt = self.failures, "a range failed; trying again");
        self.urgency.pause(wait, asked.unwrap_or_default()).await;
        Ok(())
    }

    fn stalled(&self, waited: Duration) -> SourceError {
        SourceError::Unavailable {
            what: self.route.url.clone(),
            cause: format!("nothing arrived of {} for {} seconds", self.left, waited.as_secs()).into(),
            retry_after: None,
        }
    }
}

/// Whichever of two succeeds first; an error of one leaves the other its chance.
async fn either<T>(
    first: &mut (impl Future<Output = Result<T, SourceError>> + Unpin),
    second: &mut (impl Future<Output = Result<T, SourceError>> + Unpin),
) -> Result<T, SourceError> {
    tokio::select! {
        outcome = &mut *first => match outcome {
            Ok(value) => Ok(value),
            Err(_) => second.await,
        },
        outcome = &mut *second => match outcome {
            Ok(value) => Ok(value),
            Err(_) => first.await,
        },
    }
}

fn short_body(url: &str, left: ByteRange) -> SourceError {
    let cause = format!("the answer ended with {left} still missing").into();
    SourceError::Interrupted { what: url.to_owned(), cause }
}

/// Half to all of a wait, different for different ranges, so that requests that failed together do not come back
/// together.
fn spread(wait: Duration, offset: u64, attempt: u32) -> Duration {
    let mixed = (offset ^ u64::from(attempt)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    #[expect(clippy::cast_precision_loss, reason = "24 bits")]
    let share = 0.5 + 0.5 * (mixed as f64 / f64::from(1 << 24));
    wait.mul_f64(share)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::{Instant, sleep};
    use weightd_source::{Fault, Faults, FaultyOpener, Listed, MemoryOrigin, Opener, Rule};

    use super::*;

    /// Reads an object whose first answer is a failure, in bulk until someone begins to wait for it a second later. Says
    /// how long that took.
    async fn hurried(retry_after: Option<Duration>) -> Duration {
        let origin = MemoryOrigin::new("origin");
        origin.put("model/w", vec![1; 1000]);
        let faults = Faults::new(1).with(Rule::reads(Fault::Unavailable { retry_after }).times(1));
        let opener = FaultyOpener::new(Arc::new(origin), faults);
        let source = opener.open(&"memory://origin/model".parse().unwrap()).await.unwrap();
        let Listed::Object(object) = source.list().await.unwrap().remove(0) else { panic!("it was refused") };
        let long = Duration::from_secs(100);
        let config = Config { backoff: long, backoff_limit: long, ..Config::default() };
        let line = Line::new(config);
        let (urgency, range) = (Urgency::bulk(), ByteRange::new(0, 1000));
        let route = Route { source, object, url: "memory://origin/model/w".to_owned() };
        let reader = line.read(&route, range).with_urgency(urgency.clone());
        let begin = Instant::now();
        let hurry = async {
            sleep(Duration::from_secs(1)).await;
            urgency.set_awaited(true);
        };
        let (bytes, ()) = tokio::join!(reader.collect(), hurry);
        assert_eq!(bytes.unwrap().len(), 1000);
        begin.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn who_begins_to_wait_ends_a_pause_unless_the_origin_asked_for_it() {
        assert_eq!(hurried(None).await.as_secs(), 1);
        assert_eq!(hurried(Some(Duration::from_secs(30))).await.as_secs(), 30);
    }
}
