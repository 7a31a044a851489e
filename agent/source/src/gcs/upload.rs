//! Writing one object: a resumable upload of bytes that come in their order and are nowhere else.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use google_cloud_gax::retry_policy::RetryPolicyExt;
use google_cloud_storage::{retry_policy::RetryableErrors, streaming_source::StreamingSource};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use weightd_types::SourceUri;

use super::{GcsClient, error, listing};
use crate::SourceError;

/// Parts that wait to be sent. What was sent and not confirmed yet the library keeps.
const WAITING: usize = 4;
/// Bytes of one request. Each ends with a confirmation that has to be waited for.
const REQUEST_BYTES: usize = 32 << 20;
/// How long a request is tried again that fails on the way or on the other side.
const PATIENCE: Duration = Duration::from_mins(5);

/// An object that is being written. Nobody sees it before [`Upload::finish`]; dropped before, it never comes to be.
#[derive(Debug)]
pub struct Upload {
    parts: mpsc::Sender<Part>,
    sending: AbortOnDropHandle<Result<(), SourceError>>,
}

impl Upload {
    /// Begins to write an object, in the place of the one that is there now, if there is one: whoever else writes it in the
    /// meantime is not overwritten.
    pub(crate) async fn begin(client: Arc<GcsClient>, uri: SourceUri) -> Result<Self, SourceError> {
        let replaced = listing::generation(&client, &uri).await?;
        let storage = client.storage(&uri.to_string()).await?.clone();
        let (parts, received) = mpsc::channel(WAITING);
        let mut request = storage
            .write_object(format!("projects/_/buckets/{}", uri.authority()), uri.prefix(), Parts(received))
            .set_if_generation_match(replaced)
            .with_idempotency(true)
            .with_retry_policy(RetryableErrors.with_time_limit(PATIENCE))
            .with_resumable_upload_threshold(0_usize)
            .with_resumable_upload_buffer_size(REQUEST_BYTES);
        if let Some(project) = &client.settings.user_project {
            request = request.with_quota_project(project);
        }
        let sending = tokio::spawn(async move {
            // The library sums what it sends, and the service compares.
            let written = Box::pin(request.send_buffered()).await;
            written.map(drop).map_err(|error| error::of_write(&error, &uri, &client.settings))
        });
        Ok(Self { parts, sending: AbortOnDropHandle::new(sending) })
    }

    /// Takes the next bytes, and waits while enough of them are on their way.
    ///
    /// # Errors
    /// [`SourceError`], when the upload has failed.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), SourceError> {
        match self.parts.send(Part::Bytes(bytes)).await {
            Ok(()) => Ok(()),
            // It takes no more only when it has failed.
            Err(_) => self.ended().await,
        }
    }

    /// Makes the object visible, whole.
    ///
    /// # Errors
    /// [`SourceError`], when it could not be written, or someone else wrote it.
    pub async fn finish(mut self) -> Result<(), SourceError> {
        // Where nobody takes it, the outcome is there already.
        let _ = self.parts.send(Part::End).await;
        self.ended().await
    }

    async fn ended(&mut self) -> Result<(), SourceError> {
        match (&mut self.sending).await {
            Ok(outcome) => outcome,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Ok(()),
        }
    }
}

/// What is sent next.
enum Part {
    Bytes(Bytes),
    End,
}

/// What is to be sent, as it comes. Ends well only when that is said: what was given up half way must not look whole.
struct Parts(mpsc::Receiver<Part>);

/// Whoever wrote the object has gone before its end.
#[derive(Debug, thiserror::Error)]
#[error("it was given up before its end")]
struct GivenUp;

impl StreamingSource for Parts {
    type Error = GivenUp;

    async fn next(&mut self) -> Option<Result<Bytes, GivenUp>> {
        match self.0.recv().await {
            Some(Part::Bytes(bytes)) => Some(Ok(bytes)),
            Some(Part::End) => None,
            None => Some(Err(GivenUp)),
        }
    }
}
