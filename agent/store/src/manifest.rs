//! Manifests: the truth about what is complete, beside the files they speak of.
//!
//! A manifest is JSON in an envelope with the CRC-32C of its text, so that a damaged one is recognised and treated
//! as missing rather than believed.

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use weightd_types::{
    BlobKey, CHUNK_BYTES, Crc32c, Layout, Object, Placement, Run, SafetensorsHeader, Snapshot, SnapshotError,
    SnapshotId, SnapshotKey, SourceUri,
};

use crate::paths::FORMAT_VERSION;

/// What is known of a complete blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlobManifest {
    /// Version of the store format.
    pub format: u32,
    /// The blob.
    pub key: BlobKey,
    /// Full URL of the object it was made from.
    pub url: String,
    /// The object, as listed.
    pub object: Object,
    /// Length of the blob in bytes.
    pub blob_bytes: u64,
    /// Length of all chunks but the last.
    pub chunk_bytes: u64,
    /// CRC-32C of each chunk.
    pub chunk_crc32c: Vec<Crc32c>,
    /// How many of the object's first bytes are kept in the header file instead.
    pub header_bytes: u64,
    /// CRC-32C of the header file.
    pub header_crc32c: Crc32c,
    /// Where the rest of the object lies.
    pub runs: Vec<Run>,
}

/// One object of a stored snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotEntry {
    /// The object, as listed.
    pub object: Object,
    /// Its blob.
    pub blob: BlobKey,
}

/// What is known of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotManifest {
    /// Version of the store format.
    pub format: u32,
    /// Digest of the object list.
    pub id: SnapshotId,
    /// Layout of its safetensors.
    pub layout: Layout,
    /// Where it comes from.
    pub source: SourceUri,
    /// When it was resolved, in seconds since 1970.
    pub resolved_at: u64,
    /// Its objects, sorted by path.
    pub objects: Vec<SnapshotEntry>,
}

/// A manifest that cannot be believed.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// No JSON, or not of this shape.
    #[error("the manifest cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// Its own checksum is wrong.
    #[error("the manifest is damaged (checksum {found}, should be {expected})")]
    Checksum {
        /// What its text sums to.
        found: Crc32c,
        /// What its envelope says.
        expected: Crc32c,
    },
    /// Of a later format.
    #[error("the manifest has format {0}, this weightd reads up to {FORMAT_VERSION}")]
    Newer(u32),
    /// Numbers that contradict each other.
    #[error("the manifest contradicts itself: {0}")]
    Inconsistent(&'static str),
    /// Objects that cannot be a snapshot.
    #[error("the manifest lists no possible snapshot: {0}")]
    Snapshot(#[from] SnapshotError),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    crc32c: Crc32c,
    manifest: Box<RawValue>,
}

/// The file of a manifest.
pub(crate) fn encode<T: Serialize>(manifest: &T) -> Vec<u8> {
    let wrapped = serde_json::value::to_raw_value(manifest).and_then(|manifest| {
        let crc32c = Crc32c::of(manifest.get().as_bytes());
        serde_json::to_vec(&Envelope { crc32c, manifest })
    });
    let mut bytes = wrapped.expect("manifests are plain structs with string keys");
    bytes.push(b'\n');
    bytes
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ManifestError> {
    let envelope: Envelope = serde_json::from_slice(bytes)?;
    let text = envelope.manifest.get();
    let (found, expected) = (Crc32c::of(text.as_bytes()), envelope.crc32c);
    if found != expected {
        return Err(ManifestError::Checksum { found, expected });
    }
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    match serde_json::from_str::<Format>(text)?.format {
        format if format > FORMAT_VERSION => Err(ManifestError::Newer(format)),
        _ => Ok(serde_json::from_str(text)?),
    }
}

/// Reads a blob's manifest.
///
/// # Errors
/// [`ManifestError`] when it is damaged or contradicts itself.
pub fn parse_blob_manifest(bytes: &[u8]) -> Result<BlobManifest, ManifestError> {
    let manifest: BlobManifest = decode(bytes)?;
    let chunks = manifest.blob_bytes.div_ceil(CHUNK_BYTES);
    if manifest.chunk_bytes != CHUNK_BYTES {
        return Err(ManifestError::Inconsistent("chunks of another length"));
    }
    if manifest.chunk_crc32c.len() as u64 != chunks {
        return Err(ManifestError::Inconsistent("not one checksum per chunk"));
    }
    let data_bytes = manifest.object.size.checked_sub(manifest.header_bytes);
    if data_bytes.is_none_or(|data| data > manifest.blob_bytes) {
        return Err(ManifestError::Inconsistent("lengths that do not add up"));
    }
    Ok(manifest)
}

/// Reads a snapshot's manifest.
///
/// # Errors
/// [`ManifestError`] when it is damaged, or its id is not the digest of its objects.
pub fn parse_snapshot_manifest(bytes: &[u8]) -> Result<SnapshotManifest, ManifestError> {
    let manifest: SnapshotManifest = decode(bytes)?;
    if manifest.snapshot()?.id() != manifest.id {
        return Err(ManifestError::Inconsistent("an id that is not the digest of its objects"));
    }
    Ok(manifest)
}

impl BlobManifest {
    /// Its file.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Where the object's bytes lie, given the header file's content (empty in the original layout).
    ///
    /// # Errors
    /// When the header is not the one the manifest speaks of.
    pub fn placement(&self, header: &Bytes) -> Result<Placement, ManifestError> {
        let inconsistent = ManifestError::Inconsistent;
        if header.len() as u64 != self.header_bytes || Crc32c::of(header) != self.header_crc32c {
            return Err(inconsistent("a header file that is damaged"));
        }
        let literal = match self.key.layout {
            Layout::Original => Bytes::new(),
            Layout::Aligned => SafetensorsHeader::parse(header.clone(), self.object.size)
                .and_then(|header| header.aligned())
                .map_err(|_| inconsistent("a header that is not safetensors"))?
                .literal()
                .clone(),
        };
        let placement = Placement::checked(self.object.size, literal, self.header_bytes, self.runs.clone())
            .ok_or(inconsistent("runs that do not cover the object"))?;
        if placement.blob_len() != self.blob_bytes {
            return Err(inconsistent("runs that do not fill the blob"));
        }
        Ok(placement)
    }
}

impl SnapshotManifest {
    /// Its file.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// The manifest of a snapshot in a layout.
    pub fn new(snapshot: &Snapshot, layout: Layout, resolved_at: u64) -> Self {
        let source = snapshot.source().clone();
        let entry = |object: &Object| SnapshotEntry {
            object: object.clone(),
            blob: BlobKey {
                id: weightd_types::BlobId::of(&source, object),
                layout: layout.for_object(object),
            },
        };
        let objects = snapshot.objects().iter().map(entry).collect();
        Self { format: FORMAT_VERSION, id: snapshot.id(), layout, source, resolved_at, objects }
    }

    /// Its key in the store.
    pub fn key(&self) -> SnapshotKey {
        SnapshotKey { id: self.id, layout: self.layout }
    }

    /// Sum of its objects' lengths in bytes.
    pub fn size(&self) -> u64 {
        self.objects.iter().map(|entry| entry.object.size).sum()
    }

    /// The snapshot it describes.
    ///
    /// # Errors
    /// When its objects cannot be a snapshot.
    pub fn snapshot(&self) -> Result<Snapshot, SnapshotError> {
        Snapshot::new(self.source.clone(), self.objects.iter().map(|entry| entry.object.clone()).collect())
    }
}

#[cfg(test)]
mod tests;
