//! Which files of a snapshot a client is lent, and what they begin with.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use weightd_proto::v1::FailureKind;
use weightd_store::{SnapshotEntry, SnapshotManifest, Store, StoreError, StoredBlob};
use weightd_types::{Layout, SafetensorsHeader, WeightIndex};

use super::refusal::Refusal;
use crate::reading::Demands;

/// The files of a snapshot that someone wants.
pub(crate) fn chosen<'m>(
    manifest: &'m SnapshotManifest,
    files: &[String],
) -> Result<Vec<&'m SnapshotEntry>, Refusal> {
    let mut once = BTreeSet::new();
    if let Some(name) = files.iter().find(|name| !once.insert(*name)) {
        return Err(Refusal::usage(format!("{}: the file {name:?} was named twice", manifest.source)));
    }
    let named = |name: &String| {
        let found = manifest.objects.iter().find(|entry| entry.object.path.as_str() == name);
        let missing =
            || Refusal::new(FailureKind::NotFound, format!("{} has no file {name:?}", manifest.source));
        let entry = found.ok_or_else(missing)?;
        match entry.object.path.is_safetensors() {
            true => Ok(entry),
            false => Err(Refusal::usage(format!(
                "{}: {name} holds no tensors: it is no .safetensors file",
                manifest.source
            ))),
        }
    };
    files.iter().map(named).collect()
}

/// The shards that an index names.
pub(crate) fn shards(manifest: &SnapshotManifest, name: &str, json: &[u8]) -> Result<Vec<String>, Refusal> {
    let invalid = |error| Refusal::new(FailureKind::Corrupt, format!("{}/{name} {error}", manifest.source));
    let index = WeightIndex::parse(json).map_err(invalid)?;
    let is_there = |shard: &str| manifest.objects.iter().any(|entry| entry.object.path.as_str() == shard);
    index.check_shards(is_there).map_err(invalid)?;
    Ok(index.shards().into_iter().map(str::to_owned).collect())
}

/// The header that a blob begins with, and the blob's length, if that can be known without its bytes.
pub(crate) async fn header(
    store: &Store,
    demands: &Arc<dyn Demands>,
    manifest: &SnapshotManifest,
    entry: &SnapshotEntry,
) -> Result<Option<(SafetensorsHeader, u64)>, Refusal> {
    let path = &entry.object.path;
    let corrupt =
        |why: String| Refusal::new(FailureKind::Corrupt, format!("{}/{path} {why}", manifest.source));
    let store_failed = |error: StoreError| Refusal::new(FailureKind::Unavailable, error.to_string());
    if let Some(stored) = store.stored_blob(entry.blob).await.map_err(store_failed)? {
        let bytes = stored.manifest().blob_bytes;
        return Ok(Some((stored_header(&stored, store).await.map_err(corrupt)?, bytes)));
    }
    if entry.blob.layout == Layout::Original {
        return Ok(None);
    }
    let raw = match store.recorded_header(entry.blob, &entry.object).await.map_err(store_failed)? {
        Some(recorded) if !recorded.is_empty() => recorded,
        _ => demands.header(manifest.key(), entry.blob).await?,
    };
    let own = SafetensorsHeader::parse(raw, entry.object.size).map_err(|error| corrupt(error.to_string()))?;
    let placement = own.aligned().map_err(|error| corrupt(error.to_string()))?;
    let bytes = placement.blob_len();
    let header = SafetensorsHeader::parse(placement.literal().clone(), bytes);
    Ok(Some((header.map_err(|error| corrupt(error.to_string()))?, bytes)))
}

/// The header that a complete blob begins with. The error is for people.
pub(crate) async fn stored_header(stored: &StoredBlob, store: &Store) -> Result<SafetensorsHeader, String> {
    let bytes = stored.manifest().blob_bytes;
    let literal = stored.placement().literal();
    let raw = if literal.is_empty() { read_header(stored, store).await? } else { literal.clone() };
    SafetensorsHeader::parse(raw, bytes).map_err(|error| error.to_string())
}

/// Reads as many chunks of a blob as its header takes.
async fn read_header(stored: &StoredBlob, store: &Store) -> Result<Bytes, String> {
    let bytes = stored.manifest().blob_bytes;
    let mut raw = Vec::new();
    let mut needed = 1;
    for chunk in 0..stored.placement().chunk_count() {
        if raw.len() as u64 >= needed {
            break;
        }
        let read = stored.check_chunk(chunk, store.pool().acquire().await).await;
        let (buffer, good) = read.map_err(|error| error.to_string())?;
        if !good {
            return Err("has a damaged header on disk".to_owned());
        }
        raw.extend_from_slice(&buffer);
        needed = SafetensorsHeader::length(&raw, bytes).map_err(|error| error.to_string())?;
    }
    raw.truncate(usize::try_from(needed).map_err(|error| error.to_string())?);
    Ok(raw.into())
}
