//! Writing one object: a resumable upload of bytes that come in their order and are nowhere else.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use google_cloud_gax::{
    error::Error as RequestError, retry_policy::RetryPolicy, retry_result::RetryResult,
    retry_state::RetryState,
};
use google_cloud_storage::{
    model::Object,
    retry_policy::RetryableErrors,
    streaming_source::{SizeHint, StreamingSource},
};
use tokio::{
    sync::mpsc,
    task::JoinError,
    time::{Duration, Instant, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use weightd_types::{Crc32c, SourceUri};

use super::{GcsClient, error, listing};
use crate::SourceError;

/// Parts that wait to be sent. What was sent and not confirmed yet the library keeps.
const WAITING: usize = 4;
/// Bytes of one request. Each ends with a confirmation that has to be waited for.
const REQUEST_BYTES: usize = 32 << 20;
/// How long requests are tried again that fail on the way or on the other side, since the upload last got further.
const PATIENCE: Duration = Duration::from_mins(5);

/// How long a request may go unanswered without so much as an error, before the upload is given up.
const SILENCE: Duration = Duration::from_mins(15);
/// How a service may keep what it has of a request that was cut short. The library goes on rightly only where no part of what it was
/// given lies across a multiple of it.
const KEPT_BYTES: usize = 256 << 10;

/// An object that is being written. Nobody sees it before [`Upload::finish`]; dropped before, it never comes to be.
#[derive(Debug)]
pub struct Upload {
    parts: mpsc::Sender<Part>,
    sending: AbortOnDropHandle<Result<Stored, SourceError>>,
    /// Of what was sent.
    crc32c: Crc32c,
    bytes: u64,
    what: String,
}

/// What the service says of the object: its length, and its checksum where it publishes one.
type Stored = (i64, Option<Crc32c>);

impl Upload {
    /// Begins to write an object, in the place of the one that is there now, if there is one: whoever else writes it in the
    /// meantime is not overwritten.
    pub(crate) async fn begin(
        client: Arc<GcsClient>,
        uri: SourceUri,
        bytes: u64,
    ) -> Result<Self, SourceError> {
        let replaced = listing::generation(&client, &uri).await?;
        let what = uri.to_string();
        let storage = client.storage(&uri.to_string()).await?.clone();
        let (parts, received) = mpsc::channel(WAITING);
        let moved = Arc::new(Mutex::new(Instant::now()));
        let mut request = storage
            .write_object(
                format!("projects/_/buckets/{}", uri.authority()),
                uri.prefix(),
                Parts { received, bytes, moved: Arc::clone(&moved), handed: 0, rest: Bytes::new() },
            )
            .set_if_generation_match(replaced)
            .with_idempotency(true)
            .with_retry_policy(WhileItMoves { moved })
            .with_resumable_upload_threshold(0_usize)
            .with_resumable_upload_buffer_size(REQUEST_BYTES);
        if let Some(project) = &client.settings.user_project {
            request = request.with_quota_project(project);
        }
        let sending = tokio::spawn(async move {
            // The library sums what it sends, and the service compares.
            let written = Box::pin(request.send_buffered()).await;
            let stored =
                |object: Object| (object.size, object.checksums.and_then(|sums| sums.crc32c).map(Crc32c));
            written.map(stored).map_err(|error| error::of_write(&error, &uri, &client.settings))
        });
        let sending = AbortOnDropHandle::new(sending);
        Ok(Self { parts, sending, crc32c: Crc32c::EMPTY, bytes: 0, what })
    }

    /// Takes the next bytes, and waits while enough of them are on their way.
    ///
    /// # Errors
    /// [`SourceError`], when the upload has failed.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), SourceError> {
        self.crc32c = self.crc32c.append(&bytes);
        self.bytes += bytes.len() as u64;
        match timeout(SILENCE, self.parts.send(Part::Bytes(bytes))).await {
            Ok(Ok(())) => Ok(()),
            // It takes no more only when it has failed.
            Ok(Err(_)) => self.ended().await.map(drop),
            Err(_) => Err(self.silent()),
        }
    }

    /// Makes the object visible, whole.
    ///
    /// # Errors
    /// [`SourceError`], when it could not be written, or someone else wrote it.
    pub async fn finish(mut self) -> Result<(), SourceError> {
        // Where nobody takes it, the outcome is there already.
        let ending = async {
            let _ = self.parts.send(Part::End).await;
            (&mut self.sending).await
        };
        let ended = timeout(SILENCE, ending).await.map_err(|_| self.silent())?;
        let (size, crc32c) = self.outcome(ended)?;
        // Whatever became of it on the way: what is there is what was sent, or it is no success.
        let is_same = u64::try_from(size) == Ok(self.bytes) && crc32c.is_none_or(|sum| sum == self.crc32c);
        match is_same {
            true => Ok(()),
            false => Err(SourceError::Protocol {
                what: self.what,
                detail: format!(
                    "{} bytes with crc32c {} were sent, and {size} bytes are there; delete the object and build it again",
                    self.bytes, self.crc32c
                ),
            }),
        }
    }

    async fn ended(&mut self) -> Result<Stored, SourceError> {
        let ended = (&mut self.sending).await;
        self.outcome(ended)
    }

    fn silent(&self) -> SourceError {
        let cause = format!("nothing was confirmed for {} minutes", SILENCE.as_secs() / 60);
        SourceError::Interrupted { what: self.what.clone(), cause: cause.into() }
    }

    fn outcome(&self, ended: Result<Result<Stored, SourceError>, JoinError>) -> Result<Stored, SourceError> {
        match ended {
            Ok(outcome) => outcome,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(error) => Err(SourceError::Interrupted { what: self.what.clone(), cause: Box::new(error) }),
        }
    }
}

/// What is sent next.
enum Part {
    Bytes(Bytes),
    End,
}

/// What is to be sent, as it comes. Ends well only when that is said: what was given up half way must not look whole.
struct Parts {
    received: mpsc::Receiver<Part>,
    /// Length of the whole: the service takes nothing shorter for it.
    bytes: u64,
    moved: Moved,
    /// Bytes that were handed on.
    handed: usize,
    /// What came and was not handed on yet.
    rest: Bytes,
}

/// When the library last took bytes: it takes the next when those before are confirmed.
type Moved = Arc<Mutex<Instant>>;

/// Tries again what may succeed. An upload of hours may meet any number of faults, as long as it gets further between them.
#[derive(Debug)]
struct WhileItMoves {
    moved: Moved,
}

impl RetryPolicy for WhileItMoves {
    fn on_error(&self, state: &RetryState, error: RequestError) -> RetryResult {
        let moved = *self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        match RetryableErrors.on_error(state, error) {
            RetryResult::Continue(error) if moved.elapsed() > PATIENCE => RetryResult::Exhausted(error),
            decided => decided,
        }
    }
}

/// Whoever wrote the object has gone before its end.
#[derive(Debug, thiserror::Error)]
#[error("it was given up before its end")]
struct GivenUp;

impl StreamingSource for Parts {
    type Error = GivenUp;

    async fn next(&mut self) -> Option<Result<Bytes, GivenUp>> {
        while self.rest.is_empty() {
            let next = self.received.recv().await;
            *self.moved.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            match next {
                Some(Part::Bytes(bytes)) => self.rest = bytes,
                Some(Part::End) => return None,
                None => return Some(Err(GivenUp)),
            }
        }
        let piece = (KEPT_BYTES - self.handed % KEPT_BYTES).min(self.rest.len());
        self.handed += piece;
        Some(Ok(self.rest.split_to(piece)))
    }

    async fn size_hint(&self) -> Result<SizeHint, GivenUp> {
        Ok(SizeHint::with_exact(self.bytes))
    }
}
