//! Origins for which a tier answers: what the operator put on the node is taken as it is.

use std::sync::Arc;

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use weightd_source::{ByteStream, Credential, Listed, Opener, Source, SourceError};
use weightd_store::{SnapshotManifest, Store, StoreError, StoredBlob};
use weightd_types::{BlobId, BlobKey, ByteRange, Layout, Object, SourceUri};

/// Asks an origin only for what no tier has whole.
#[derive(Debug)]
pub(crate) struct TieredOrigins {
    origins: Arc<dyn Opener>,
    store: Store,
}

impl TieredOrigins {
    pub(crate) fn new(origins: Arc<dyn Opener>, store: Store) -> Self {
        Self { origins, store }
    }

    fn tier(&self, uri: &SourceUri, credential: &Credential) -> Option<Arc<dyn Source>> {
        let manifest = self.store.tier_snapshot(|manifest| manifest.source == *uri)?;
        Some(Arc::new(TierSource {
            manifest,
            store: self.store.clone(),
            origins: Arc::clone(&self.origins),
            uri: uri.clone(),
            credential: credential.clone(),
        }))
    }
}

#[async_trait]
impl Opener for TieredOrigins {
    async fn open(&self, uri: &SourceUri) -> Result<Arc<dyn Source>, SourceError> {
        self.open_as(uri, &Credential::Node).await
    }

    async fn open_as(
        &self,
        uri: &SourceUri,
        credential: &Credential,
    ) -> Result<Arc<dyn Source>, SourceError> {
        match self.tier(uri, credential) {
            Some(source) => Ok(source),
            None => self.origins.open_as(uri, credential).await,
        }
    }

    async fn open_to_mend(&self, uri: &SourceUri) -> Result<Arc<dyn Source>, SourceError> {
        // What a tier has is what is wrong.
        self.origins.open_to_mend(uri).await
    }
}

/// A source as a tier has it.
#[derive(Debug)]
struct TierSource {
    manifest: Arc<SnapshotManifest>,
    store: Store,
    origins: Arc<dyn Opener>,
    uri: SourceUri,
    credential: Credential,
}

#[async_trait]
impl Source for TierSource {
    async fn list(&self) -> Result<Vec<Listed>, SourceError> {
        Ok(self.manifest.objects.iter().map(|entry| Listed::Object(entry.object.clone())).collect())
    }

    async fn read(&self, object: &Object, range: ByteRange) -> Result<ByteStream, SourceError> {
        let id = BlobId::of(&self.manifest.source, object);
        for layout in [Layout::Aligned, Layout::Original] {
            if let Ok(Some(blob)) = self.store.stored_blob(BlobKey { id, layout }).await {
                return Ok(stored(blob, range, self.uri.object_url(&object.path)));
            }
        }
        // It was lost, or is of another snapshot.
        self.origins.open_as(&self.uri, &self.credential).await?.read(object, range).await
    }
}

/// A range of an object as a stored blob has it, each chunk checked.
fn stored(blob: StoredBlob, range: ByteRange, what: String) -> ByteStream {
    let failed =
        move |error: StoreError| SourceError::Interrupted { what: what.clone(), cause: Box::new(error) };
    let blob = Arc::new(blob);
    let parts = stream::iter(blob.parts_of(range));
    let read = move |part| {
        let blob = Arc::clone(&blob);
        async move { blob.read_part(part).await }
    };
    parts.then(read).map_err(failed).boxed()
}
