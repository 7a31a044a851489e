//! Reads stored chunks again, and repairs those that rotted from the origin.

use std::{collections::BTreeMap, sync::Arc};

use futures::{StreamExt, stream};
use tokio::sync::mpsc;
use weightd_store::{SnapshotEntry, SnapshotManifest, SnapshotRecord, StoreError, StoredBlob};
use weightd_types::{BlobKey, ByteRange, SnapshotKey, SourceUri};

use crate::{FetchError, Fetcher, Route, fetcher::Inner};

/// Chunks read at once.
const AT_ONCE: usize = 4;
/// Events that may wait for a slow listener.
const QUEUE: usize = 64;

/// What a verification has to say.
#[derive(Debug, Clone)]
pub enum VerifyEvent {
    /// Bytes read so far, of so many.
    Progress {
        /// Read and compared.
        done: u64,
        /// All there is to read.
        total: u64,
    },
    /// A chunk is not what was recorded.
    Bad(BadChunk),
    /// The end.
    Summary(VerifySummary),
}

/// A chunk that is not what was recorded.
#[derive(Debug, Clone)]
pub struct BadChunk {
    /// The file's name in its snapshot.
    pub path: String,
    /// The snapshot's source.
    pub source: SourceUri,
    /// The blob in the store.
    pub blob: BlobKey,
    /// Bytes of the blob.
    pub range: ByteRange,
    /// Whether right bytes are there now.
    pub repaired: bool,
    /// Why not, if someone tried.
    pub failure: Option<String>,
}

/// What a verification found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VerifySummary {
    /// Bytes read and compared.
    pub checked_bytes: u64,
    /// Blobs they belong to.
    pub checked_blobs: u64,
    /// Chunks that were not what was recorded.
    pub bad_chunks: u64,
    /// Those of them that are repaired.
    pub repaired_chunks: u64,
}

pub(crate) type Events = mpsc::Sender<Result<VerifyEvent, FetchError>>;

impl Fetcher {
    /// Reads every chunk of the snapshots a name means (of all, for `None`) and compares it with what was recorded; `repair` fetches
    /// right bytes for bad ones. What cannot be repaired is no longer served as complete. Ends early when the receiver
    /// is dropped.
    ///
    /// # Errors
    /// [`FetchError::Store`] when no snapshot has that name.
    pub fn verify(
        &self,
        name: Option<&str>,
        repair: bool,
    ) -> Result<mpsc::Receiver<Result<VerifyEvent, FetchError>>, FetchError> {
        let records = match name {
            Some(name) => self.store().find_all(name)?,
            None => self.store().snapshots(),
        };
        let (events, received) = mpsc::channel(QUEUE);
        let inner = Arc::clone(&self.inner);
        self.inner.tasks.spawn(async move {
            let closing = inner.closing.clone();
            let verification =
                Verification { inner, events: events.clone(), repair, summary: VerifySummary::default() };
            tokio::select! {
                () = closing.cancelled() => {}
                () = events.closed() => {}
                outcome = verification.run(records) => {
                    // The listener may have left.
                    let _ = events.send(outcome.map(VerifyEvent::Summary)).await;
                }
            }
        });
        Ok(received)
    }
}

impl Fetcher {
    /// Fetches one chunk of a complete blob again, because what the disk gave is not what was recorded. One that is right by now
    /// is left as it is.
    ///
    /// # Errors
    /// [`FetchError::Store`] when there is no such blob, or the bytes fetched are not right either.
    pub async fn repair_chunk(
        &self,
        snapshot: SnapshotKey,
        key: BlobKey,
        chunk: u32,
    ) -> Result<(), FetchError> {
        let not_found = || StoreError::NotFound { name: key.to_string() };
        let record = self.store().snapshot(&snapshot).ok_or_else(not_found)?;
        let subject = Subject::of(&record.manifest, &key).ok_or_else(not_found)?;
        match self.store().stored_blob(key).await? {
            Some(blob) => {
                let checked = blob.check_chunk(chunk, self.store().pool().acquire().await).await;
                if checked.is_ok_and(|(_, good)| good) {
                    // Someone else came to it first, and has mended it or had the blob of a damaged tier brought to the store; or
                    // it never was wrong on the disk.
                    blob.drop_cached_chunk(chunk);
                } else {
                    self.inner.repair(&subject, &blob, chunk).await?;
                }
            }
            // Whoever came to another bad chunk of it was first.
            None => self.inner.refetch(&subject).await?,
        }
        self.inner.restore(&record.manifest).await
    }

    /// Lengths of the blobs of a snapshot that is complete, in the order of its manifest.
    ///
    /// # Errors
    /// [`FetchError::Store`] when one is not complete.
    pub async fn stored_lengths(&self, manifest: &SnapshotManifest) -> Result<Vec<u64>, FetchError> {
        let mut lengths = Vec::with_capacity(manifest.objects.len());
        for entry in &manifest.objects {
            let length = self.store().blob_length(entry.blob).await?;
            lengths.push(length.ok_or_else(|| StoreError::NotFound { name: entry.blob.to_string() })?);
        }
        Ok(lengths)
    }
}

pub(crate) struct Verification {
    pub(crate) inner: Arc<Inner>,
    pub(crate) events: Events,
    pub(crate) repair: bool,
    pub(crate) summary: VerifySummary,
}

/// A blob to verify, and where it would come from.
pub(crate) struct Subject {
    source: SourceUri,
    pub(crate) entry: SnapshotEntry,
}

impl Subject {
    /// A blob of a snapshot, if it is one.
    pub(crate) fn of(manifest: &SnapshotManifest, blob: &BlobKey) -> Option<Self> {
        let entry = manifest.objects.iter().find(|entry| entry.blob == *blob)?;
        Some(Self { source: manifest.source.clone(), entry: entry.clone() })
    }
}

impl Verification {
    async fn run(mut self, records: Vec<SnapshotRecord>) -> Result<VerifySummary, FetchError> {
        let store = self.inner.store.clone();
        let holds: Vec<_> = records.iter().filter_map(|record| store.hold(record.key()).ok()).collect();
        let (mut subjects, mut published) = (BTreeMap::new(), Vec::new());
        for record in &records {
            let manifest = &record.manifest;
            // Of a snapshot that was complete, what is missing is bad too: an earlier verification may have found it.
            let entries = if store.was_published(record.key()).await? {
                published.push(Arc::clone(manifest));
                manifest.objects.clone()
            } else {
                store.stored(Arc::clone(manifest)).await?
            };
            for entry in entries {
                let source = manifest.source.clone();
                subjects.entry(entry.blob).or_insert(Subject { source, entry });
            }
        }
        let total = subjects.values().map(|subject| subject.entry.object.size).sum();
        for subject in subjects.values() {
            self.check_blob(subject, total).await?;
            self.summary.checked_blobs += 1;
        }
        for manifest in &published {
            self.check_files(manifest).await?;
        }
        for record in records.iter().filter(|record| self.repair && record.complete) {
            self.inner.restore(&record.manifest).await?;
        }
        drop(holds);
        Ok(self.summary)
    }

    /// Compares a whole blob with what was recorded, and mends it.
    pub(crate) async fn check_blob(&mut self, subject: &Subject, total: u64) -> Result<(), FetchError> {
        let store = &self.inner.store;
        let blob = match store.stored_blob(subject.entry.blob).await {
            Ok(Some(blob)) => blob,
            Ok(None) => return self.missing(subject).await,
            Err(StoreError::Manifest { why, .. }) => return self.unreadable(subject, why).await,
            Err(error) => return Err(error.into()),
        };
        let check = |chunk| {
            let blob = &blob;
            async move {
                (chunk, blob.check_chunk(chunk, store.pool().acquire().await).await.map(|(_, good)| good))
            }
        };
        let mut bad = Vec::new();
        {
            let mut checks = stream::iter(0..blob.placement().chunk_count()).map(check).buffered(AT_ONCE);
            while let Some((chunk, good)) = checks.next().await {
                self.summary.checked_bytes += blob.placement().chunk_range(chunk).len();
                // A sector the disk cannot read is as bad as one that reads wrong.
                if !good.unwrap_or(false) {
                    bad.push(chunk);
                }
                let done = self.summary.checked_bytes.min(total);
                let _ = self.events.send(Ok(VerifyEvent::Progress { done, total })).await;
            }
        }
        self.mend(subject, &blob, &bad).await
    }

    /// Repairs bad chunks in place, where readers that have the file mapped get them too.
    pub(crate) async fn mend(
        &mut self,
        subject: &Subject,
        blob: &StoredBlob,
        bad: &[u32],
    ) -> Result<(), FetchError> {
        let mut lacking = Vec::new();
        for &chunk in bad {
            let outcome = if self.repair {
                self.inner.repair(subject, blob, chunk).await.map_err(Some)
            } else {
                Err(None)
            };
            let range = blob.placement().chunk_range(chunk);
            self.report(subject, range, &outcome).await;
            if outcome.is_err() {
                lacking.push(chunk);
            }
        }
        if !lacking.is_empty() {
            blob.demote(&lacking).await?;
        }
        Ok(())
    }

    /// A blob whose manifest or file cannot be used is thrown away and fetched anew.
    async fn unreadable(&mut self, subject: &Subject, why: String) -> Result<(), FetchError> {
        tracing::warn!(blob = %subject.entry.blob, why, "a stored blob cannot be read");
        self.inner.store.discard_blob(subject.entry.blob).await?;
        self.missing(subject).await
    }

    /// A blob that is not complete: what is recorded of it stays, the rest is fetched.
    async fn missing(&mut self, subject: &Subject) -> Result<(), FetchError> {
        self.inner.store.mark_missing(subject.entry.blob).await?;
        let outcome = if self.repair { self.inner.refetch(subject).await.map_err(Some) } else { Err(None) };
        self.report(subject, ByteRange::new(0, subject.entry.object.size), &outcome).await;
        Ok(())
    }

    async fn report(
        &mut self,
        subject: &Subject,
        range: ByteRange,
        outcome: &Result<(), Option<FetchError>>,
    ) {
        self.summary.bad_chunks += 1;
        self.summary.repaired_chunks += u64::from(outcome.is_ok());
        let bad = BadChunk {
            path: subject.entry.object.path.to_string(),
            source: subject.source.clone(),
            blob: subject.entry.blob,
            range,
            repaired: outcome.is_ok(),
            failure: outcome.as_ref().err().and_then(Option::as_ref).map(ToString::to_string),
        };
        let _ = self.events.send(Ok(VerifyEvent::Bad(bad))).await;
    }

    /// Checks that a snapshot's files are the blobs that were checked.
    async fn check_files(&mut self, manifest: &Arc<SnapshotManifest>) -> Result<(), FetchError> {
        let strange = self.inner.store.strange_files(Arc::clone(manifest)).await?;
        if self.repair {
            self.inner.restore(manifest).await?;
        }
        let outcome = if self.repair { Ok(()) } else { Err(None) };
        for entry in strange {
            let range = ByteRange::new(0, entry.object.size);
            let subject = Subject { source: manifest.source.clone(), entry };
            self.report(&subject, range, &outcome).await;
        }
        Ok(())
    }
}

impl Inner {
    /// Makes a snapshot whole again whose blobs are all here. What could not be brought back was reported.
    pub(crate) async fn restore(&self, manifest: &Arc<SnapshotManifest>) -> Result<(), FetchError> {
        let stored = self.store.stored(Arc::clone(manifest)).await?;
        if stored.len() == manifest.objects.len() && !self.store.is_complete(manifest.key()).await? {
            self.store.publish(manifest.as_ref().clone()).await?;
        }
        Ok(())
    }

    /// Brings a whole blob back.
    async fn refetch(self: &Arc<Self>, subject: &Subject) -> Result<(), FetchError> {
        let entry = &subject.entry;
        if let Some(flight) = self.flight_of(&entry.blob) {
            return flight.landed.await;
        }
        let reservation = Arc::new(self.store.reserve(entry.object.size).await?);
        let route = self.route_to_mend(subject).await?;
        let turn = self.take_turns(1);
        self.fly(route, entry.blob, &reservation, 0, turn).landed.await
    }

    async fn route_to_mend(&self, Subject { source: uri, entry }: &Subject) -> Result<Route, FetchError> {
        let source = self.opener.open_to_mend(uri).await?;
        Ok(Route { source, object: entry.object.clone(), url: uri.object_url(&entry.object.path) })
    }

    /// Fetches one chunk again and writes it over the bad one, if it sums to what was recorded. In a read-only tier nothing can be
    /// written: the blob comes to the store instead, and only what is bad of it from the origin.
    async fn repair(
        self: &Arc<Self>,
        subject: &Subject,
        blob: &StoredBlob,
        chunk: u32,
    ) -> Result<(), FetchError> {
        if blob.is_in_tier() {
            blob.condemn(chunk).await?;
            // For another chunk of it that may have been done already.
            return if self.store.is_stored(subject.entry.blob).await? {
                Ok(())
            } else {
                self.refetch(subject).await
            };
        }
        let route = self.route_to_mend(subject).await?;
        let placement = blob.placement();
        let mut bytes = placement.literal_of_chunk(chunk).to_vec();
        for &piece in placement.pieces_of_chunk(chunk) {
            let range = placement.pieces()[piece as usize].object;
            let part = self.line.read(&route, range).collect().await?;
            bytes.extend_from_slice(&part);
        }
        let mut buffer = self.store.pool().acquire().await;
        buffer.extend_from_slice(&bytes);
        Ok(blob.repair_chunk(chunk, buffer).await?)
    }
}
