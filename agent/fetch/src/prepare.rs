//! Before a blob's bytes: its header, checked, which says where they go.

use std::sync::Arc;

use bytes::Bytes;
use weightd_store::WantedBlob;
use weightd_types::{BlobKey, Layout, Placement, SafetensorsHeader};

use crate::{FetchError, Route, fetcher::Inner};

/// What has to be known of a blob before its bytes are fetched.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) wanted: WantedBlob,
    /// Of safetensors, whatever the layout.
    pub(crate) header: Option<SafetensorsHeader>,
}

impl Inner {
    /// Fetches and checks what has to be known of a blob.
    pub(crate) async fn prepare(&self, route: &Route, key: BlobKey) -> Result<Prepared, FetchError> {
        let Route { object, url, .. } = route;
        let header = if object.path.is_safetensors() { Some(self.header(route, key).await?) } else { None };
        let original = || Arc::new(Placement::original(object.size));
        let (raw, placement) = match (&header, key.layout) {
            (Some(header), Layout::Aligned) => {
                let aligned =
                    header.aligned().map_err(|source| FetchError::Header { url: url.clone(), source })?;
                (header.raw().clone(), Arc::new(aligned))
            }
            _ => (Bytes::new(), original()),
        };
        let wanted = WantedBlob { key, url: url.clone(), object: object.clone(), header: raw, placement };
        Ok(Prepared { wanted, header })
    }

    async fn header(&self, route: &Route, key: BlobKey) -> Result<SafetensorsHeader, FetchError> {
        let object = &route.object;
        let recorded = self.store.recorded_header(key, object).await?.filter(|header| !header.is_empty());
        if let Some(header) = recorded.and_then(|raw| SafetensorsHeader::parse(raw, object.size).ok()) {
            return Ok(header);
        }
        self.line.header(route).await
    }
}
