//! Before a blob's bytes: its header, checked, which says where they go.

use std::sync::Arc;

use bytes::Bytes;
use weightd_store::WantedBlob;
use weightd_types::{BlobKey, ByteRange, HeaderError, Layout, Placement, SafetensorsHeader};

use crate::{FetchError, fetcher::Inner, flight::Route, range_reader::RangeReader};

/// How much of an object is asked for in the hope that its whole header is in it: enough for a thousand tensors.
const HEADER_GUESS_BYTES: u64 = 128 << 10;
/// Times a header that cannot be right is fetched: the first time, the way may have damaged it.
const HEADER_ATTEMPTS: u32 = 2;

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
        let Route { object, url, .. } = route;
        let refuse = |source: HeaderError| FetchError::Header { url: url.clone(), source };
        let recorded = self.store.recorded_header(key, object).await?.filter(|header| !header.is_empty());
        if let Some(header) = recorded.and_then(|raw| SafetensorsHeader::parse(raw, object.size).ok()) {
            return Ok(header);
        }
        let mut attempt = 1;
        loop {
            match self.fetch_header(route).await? {
                Ok(header) => return Ok(header),
                Err(error) if attempt == HEADER_ATTEMPTS => return Err(refuse(error)),
                Err(error) => tracing::warn!(url, %error, "the header cannot be right; fetching it again"),
            }
            attempt += 1;
        }
    }

    async fn fetch_header(
        &self,
        route: &Route,
    ) -> Result<Result<SafetensorsHeader, HeaderError>, FetchError> {
        let Route { object, url, source } = route;
        if object.size == 0 {
            return Ok(Err(HeaderError::TooShort(0)));
        }
        let read = |range| RangeReader::new(&self.line, source.as_ref(), object, url, range).collect();
        let first = read(ByteRange::new(0, HEADER_GUESS_BYTES.min(object.size))).await?;
        let length = match SafetensorsHeader::length(&first, object.size) {
            Ok(length) => length,
            Err(error) => return Ok(Err(error)),
        };
        let raw = if length <= first.len() as u64 {
            first.slice(..usize::try_from(length).expect("no longer than a slice that exists"))
        } else {
            let rest = read(ByteRange::new(first.len() as u64, length)).await?;
            [first, rest].concat().into()
        };
        Ok(SafetensorsHeader::parse(raw, object.size))
    }
}
