//! Writing one object: a resumable upload of bytes that come in their order and are nowhere else. What was sent is kept until the
//! service says that it has it.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use tokio::{
    sync::mpsc,
    time::{Duration, Instant, sleep},
};
use tokio_util::task::AbortOnDropHandle;
use weightd_types::{Crc32c, SourceUri};

use super::{
    GcsClient, listing,
    session::{Session, Standing, Written},
};
use crate::SourceError;

/// Parts that wait to be sent.
const WAITING: usize = 4;
/// Bytes of one request, a multiple of 256 KiB. Each ends with a confirmation that has to be waited for.
const REQUEST_BYTES: usize = 32 << 20;
/// How long failing requests are tried again after the last progress.
const PATIENCE: Duration = Duration::from_mins(5);
/// Wait before the first attempt after a failure; doubles with each.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Longest wait between attempts, whatever the service asks for.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// An object that is being written. Nobody sees it before [`Upload::finish`]; dropped before, it never comes to be.
#[derive(Debug)]
pub struct Upload {
    parts: mpsc::Sender<Part>,
    /// `None` once its outcome was told.
    sending: Option<AbortOnDropHandle<Result<Written, SourceError>>>,
    /// Of what was sent.
    crc32c: Crc32c,
    bytes: u64,
    announced: u64,
    what: String,
}

impl Upload {
    /// Begins to write an object of so many bytes, in the place of the one that is there now, if there is one: whoever else writes
    /// it in the meantime is not overwritten.
    pub(crate) async fn begin(
        client: Arc<GcsClient>,
        web: reqwest::Client,
        uri: SourceUri,
        bytes: u64,
    ) -> Result<Self, SourceError> {
        let replaced = Patience::new().until_done(|| listing::generation(&client, &uri)).await?;
        let what = uri.to_string();
        let (parts, received) = mpsc::channel(WAITING);
        let sending = tokio::spawn(async move {
            let mut patience = Patience::new();
            let begin = || Session::begin(&client, &web, &uri, bytes, replaced);
            let session = patience.until_done(begin).await?;
            let sending = Sending { session, kept: VecDeque::new(), kept_bytes: 0, stored: 0, patience };
            sending.run(received).await
        });
        let sending = Some(AbortOnDropHandle::new(sending));
        Ok(Self { parts, sending, crc32c: Crc32c::EMPTY, bytes: 0, announced: bytes, what })
    }

    /// Takes the next bytes, and waits while enough of them are on their way.
    ///
    /// # Errors
    /// [`SourceError`], when the upload has failed, or there are more of them than was said.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), SourceError> {
        self.crc32c = self.crc32c.append(&bytes);
        self.bytes += bytes.len() as u64;
        // Before any of it goes on its way: with what was said the object is whole.
        if self.bytes > self.announced {
            return Err(self.of_another_length());
        }
        match self.parts.send(Part::Bytes(bytes)).await {
            Ok(()) => Ok(()),
            // It takes no more only when it has failed.
            Err(_) => self.ended().await.map(drop),
        }
    }

    /// Makes the object visible, whole.
    ///
    /// # Errors
    /// [`SourceError`], when it could not be written, or someone else wrote it, or it is not as long as was said.
    pub async fn finish(mut self) -> Result<(), SourceError> {
        if self.bytes != self.announced {
            return Err(self.of_another_length());
        }
        // Where nobody takes it, the outcome is there already.
        let _ = self.parts.send(Part::End(self.crc32c)).await;
        let written = self.ended().await?;
        // Whatever became of it on the way: what is there is what was sent, or it is no success.
        if written.bytes == self.bytes && written.crc32c.is_none_or(|sum| sum == self.crc32c) {
            return Ok(());
        }
        Err(self.strange(format!(
            "{} bytes with crc32c {} were sent, and {} other bytes are there; delete the object and build it again",
            self.bytes, self.crc32c, written.bytes
        )))
    }

    async fn ended(&mut self) -> Result<Written, SourceError> {
        let Some(sending) = self.sending.take() else {
            let cause = "it has failed before".into();
            return Err(SourceError::Interrupted { what: self.what.clone(), cause });
        };
        match sending.await {
            Ok(outcome) => outcome,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(error) => Err(SourceError::Interrupted { what: self.what.clone(), cause: Box::new(error) }),
        }
    }

    fn of_another_length(&self) -> SourceError {
        self.strange(format!("{} bytes were to be written, and {} came", self.announced, self.bytes))
    }

    fn strange(&self, detail: String) -> SourceError {
        SourceError::Protocol { what: self.what.clone(), detail }
    }
}

/// What is sent next.
enum Part {
    Bytes(Bytes),
    /// Nothing: this is the checksum of all of it.
    End(Crc32c),
}

/// The other end of an [`Upload`].
struct Sending {
    session: Session,
    /// What came, and is not confirmed.
    kept: VecDeque<Bytes>,
    kept_bytes: usize,
    /// Confirmed, from the beginning.
    stored: u64,
    patience: Patience,
}

impl Sending {
    async fn run(mut self, mut received: mpsc::Receiver<Part>) -> Result<Written, SourceError> {
        let mut whole = None;
        loop {
            // A byte more than goes into a request: what is not said to be the end must not make it the object.
            while whole.is_none() && self.kept_bytes <= REQUEST_BYTES {
                match received.recv().await {
                    Some(Part::Bytes(bytes)) => {
                        self.kept_bytes += bytes.len();
                        self.kept.push_back(bytes);
                    }
                    Some(Part::End(sum)) => whole = Some(sum),
                    None => return Err(self.session.interrupted("it was given up before its end")),
                }
                self.patience = Patience::new();
            }
            let last = whole.filter(|_| self.kept_bytes <= REQUEST_BYTES);
            let standing = match self.session.send(self.stored, self.next_part(), last).await {
                Ok(Standing::Open(stored)) if stored == self.stored => {
                    self.ask(self.session.interrupted("nothing was kept of what was sent")).await?
                }
                Ok(standing) => standing,
                // What of it has come only the service knows.
                Err(error) => self.ask(error).await?,
            };
            match standing {
                Standing::Open(stored) => self.confirm(stored)?,
                Standing::Ended(written) if last.is_some() => return Ok(written),
                Standing::Ended(_) => {
                    let detail = "it was called complete before its end was sent".to_owned();
                    return Err(self.session.nonsense(detail));
                }
            }
        }
    }

    /// What goes into the next request.
    fn next_part(&self) -> Vec<Bytes> {
        let mut left = REQUEST_BYTES;
        let mut part = Vec::with_capacity(self.kept.len());
        for bytes in &self.kept {
            let piece = bytes.slice(..bytes.len().min(left));
            left -= piece.len();
            part.push(piece);
            if left == 0 {
                break;
            }
        }
        part
    }

    /// Waits after a failure, and asks what is there.
    async fn ask(&mut self, error: SourceError) -> Result<Standing, SourceError> {
        self.patience.after(error).await?;
        self.patience.until_done(|| self.session.standing()).await
    }

    /// Lets go of what is there.
    fn confirm(&mut self, stored: u64) -> Result<(), SourceError> {
        let came = stored.checked_sub(self.stored).and_then(|came| usize::try_from(came).ok());
        let Some(mut came) = came.filter(|came| *came <= self.kept_bytes) else {
            let (before, all) = (self.stored, self.stored + self.kept_bytes as u64);
            let detail = format!("of {all} bytes of an upload it kept {before}, and now says {stored}");
            return Err(self.session.nonsense(detail));
        };
        if came > 0 {
            self.patience = Patience::new();
        }
        self.stored = stored;
        self.kept_bytes -= came;
        while let Some(first) = self.kept.front_mut()
            && came > 0
        {
            let gone = came.min(first.len());
            came -= gone;
            let rest = first.split_off(gone);
            match rest.is_empty() {
                true => drop(self.kept.pop_front()),
                false => *first = rest,
            }
        }
        Ok(())
    }
}

/// How long it is tried again. An upload of hours may meet any number of faults, as long as it gets further between them.
struct Patience {
    moved: Instant,
    failures: u32,
}

impl Patience {
    fn new() -> Self {
        Self { moved: Instant::now(), failures: 0 }
    }

    /// Tries until it succeeds, or there is no hope.
    async fn until_done<T, F>(&mut self, mut attempt: impl FnMut() -> F) -> Result<T, SourceError>
    where
        F: Future<Output = Result<T, SourceError>>,
    {
        loop {
            match attempt().await {
                Ok(done) => return Ok(done),
                Err(error) => self.after(error).await?,
            }
        }
    }

    /// Waits before the next attempt, if there shall be one.
    async fn after(&mut self, error: SourceError) -> Result<(), SourceError> {
        if !error.is_retryable() || self.moved.elapsed() > PATIENCE {
            return Err(error);
        }
        let doubled = FIRST_WAIT.saturating_mul(1 << self.failures.min(16));
        let wait = error.retry_after().unwrap_or_default().max(doubled).min(LONGEST_WAIT);
        self.failures += 1;
        tracing::warn!(%error, ?wait, "an upload makes no progress; trying again");
        sleep(wait).await;
        Ok(())
    }
}
