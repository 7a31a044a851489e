//! Before a blob's bytes: its header, checked, which says where they go.

use std::sync::Arc;

use bytes::Bytes;
use weightd_store::WantedBlob;
use weightd_types::{BlobKey, Layout, Placement, SafetensorsHeader};

use crate::{FetchError, Route, fetcher::Inner};

/// What has to be known of a blob before its bytes are fetched.
#[derive(Debug)]
pub struct Prepared {
    /// The blob, and where its object's bytes go.
    pub wanted: WantedBlob,
    /// Of safetensors, whatever the layout.
    pub header: Option<SafetensorsHeader>,
}

impl Prepared {
    /// What is known of a blob once the header of its object is, if that is safetensors.
    ///
    /// # Errors
    /// [`FetchError::Header`] when it has no aligned layout.
    pub fn new(key: BlobKey, route: &Route, header: Option<SafetensorsHeader>) -> Result<Self, FetchError> {
        let Route { object, url, .. } = route;
        let (raw, placement) = match (&header, key.layout) {
            (Some(header), Layout::Aligned) => {
                let aligned =
                    header.aligned().map_err(|source| FetchError::Header { url: url.clone(), source })?;
                (header.raw().clone(), aligned)
            }
            _ => (Bytes::new(), Placement::original(object.size)),
        };
        let (object, url, placement) = (object.clone(), url.clone(), Arc::new(placement));
        let wanted = WantedBlob { key, url, object, header: raw, placement };
        Ok(Self { wanted, header })
    }
}

impl Inner {
    /// Fetches and checks what has to be known of a blob.
    pub(crate) async fn prepare(&self, route: &Route, key: BlobKey) -> Result<Prepared, FetchError> {
        let header =
            if route.object.path.is_safetensors() { Some(self.header(route, key).await?) } else { None };
        Prepared::new(key, route, header)
    }

    async fn header(&self, route: &Route, key: BlobKey) -> Result<SafetensorsHeader, FetchError> {
        let object = &route.object;
        let recorded = self.store.recorded_header(key, object).await?.filter(|header| !header.is_empty());
        if let Some(header) = recorded.and_then(|raw| SafetensorsHeader::parse(raw, object.size).ok()) {
            return Ok(header);
        }
        // What is not known any more because a tier's copy is damaged need not be asked for.
        match self.header_of_damaged(route, key).await? {
            Some(header) => Ok(header),
            None => self.line.header(route).await,
        }
    }
}
