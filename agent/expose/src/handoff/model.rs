//! Which model a client is lent: a snapshot, its files, and whatever keeps them here.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::watch;
use weightd_proto::v1::{FailureKind, HandoffOpen};
use weightd_store::{SnapshotEntry, SnapshotManifest, SnapshotUse};
use weightd_types::{
    ByteRange, Cut, HEADER_LENGTH_BYTES, HeaderError, ModelFiles, SafetensorsHeader, Slicing, SnapshotKey,
    WeightIndex,
};

use super::{Inner, files, refusal::Refusal, resident::Resident};
use crate::{
    reading::{Brought, Target, chunks_of},
    shown::Condition,
};

/// Of the protocol.
const VERSION: u32 = 1;
/// Files whose headers are looked for at once.
const HEADERS_AT_ONCE: usize = 16;

/// Which snapshots a socket serves.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Scope {
    /// A volume's.
    Snapshot(SnapshotKey),
    /// Any.
    Node,
}

/// What a client is lent.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) inner: Arc<Inner>,
    pub(crate) manifest: Arc<SnapshotManifest>,
    /// Each with the number of its blob.
    pub(crate) files: Vec<(String, usize)>,
    /// Of all files, each once.
    pub(crate) blobs: Vec<SnapshotEntry>,
    /// Which parts of its tensors.
    pub(crate) slicing: Slicing,
    /// How its transfer is doing.
    pub(crate) condition: watch::Receiver<Condition>,
    _hold: SnapshotUse,
    _brought: Option<Brought>,
}

/// A blob that is in memory already, or what it begins with, and its length.
pub(crate) enum Found {
    Resident(Arc<Resident>),
    Header(SafetensorsHeader, u64),
}

impl Found {
    /// The blob's own header.
    pub(crate) fn header(&self) -> &SafetensorsHeader {
        match self {
            Self::Resident(resident) => resident.header(),
            Self::Header(header, _) => header,
        }
    }
}

impl Model {
    /// Finds what a client asks for, at a socket with that scope.
    pub(crate) async fn find(inner: Arc<Inner>, open: &HandoffOpen, scope: Scope) -> Result<Self, Refusal> {
        if open.version != VERSION {
            return Err(Refusal::usage(format!(
                "this agent speaks version {VERSION} of the hand-off protocol, and the client version {}",
                open.version
            )));
        }
        let slicing = slicing(open)?;
        let (key, brought) = match scope {
            Scope::Snapshot(key) if open.source.is_empty() => (key, None),
            Scope::Snapshot(_) => {
                return Err(Refusal::usage(
                    "the socket of a volume serves the volume's own snapshot: name no source",
                ));
            }
            Scope::Node => inner.find(&open.source).await?,
        };
        let model = Self::of_snapshot(inner, key, &open.files).await?;
        Ok(Self { slicing, _brought: brought, ..model })
    }

    /// These files of a snapshot, or without any named those of the model at its top.
    pub(crate) async fn of_snapshot(
        inner: Arc<Inner>,
        key: SnapshotKey,
        named: &[String],
    ) -> Result<Self, Refusal> {
        let gone =
            || Refusal::new(FailureKind::NotFound, format!("{key}: this node has no such snapshot any more"));
        let hold = inner.store().hold(key).map_err(|_| gone())?;
        let manifest = inner.store().snapshot(&key).ok_or_else(gone)?.manifest;
        let condition = inner.condition(key);
        let (files, blobs) = (Vec::new(), Vec::new());
        let slicing = Slicing::default();
        let mut model =
            Self { inner, manifest, files, blobs, slicing, condition, _hold: hold, _brought: None };
        let names = model.names(named).await?;
        for entry in files::chosen(&model.manifest, &names)? {
            let known = model.blobs.iter().position(|known| known.blob == entry.blob);
            let blob = known.unwrap_or(model.blobs.len());
            if known.is_none() {
                model.blobs.push(entry.clone());
            }
            model.files.push((entry.object.path.to_string(), blob));
        }
        Ok(model)
    }

    /// Of each blob what is known of it, in their order.
    pub(crate) async fn look(&self) -> Result<Vec<Found>, Refusal> {
        let look = async |entry: &SnapshotEntry| {
            if let Some(resident) = self.inner.residents.known(&entry.blob) {
                return Ok(Found::Resident(resident));
            }
            let (header, bytes) = self.header(entry).await?;
            Ok::<_, Refusal>(Found::Header(header, bytes))
        };
        stream::iter(&self.blobs).map(look).buffered(HEADERS_AT_ONCE).try_collect().await
    }

    /// A message about it.
    pub(crate) fn about(&self, why: &str) -> String {
        format!("{}: {why}", self.manifest.source)
    }

    /// That some of it cannot be brought.
    pub(crate) fn unavailable(&self, why: &str) -> Refusal {
        Refusal::new(FailureKind::Unavailable, self.about(why))
    }

    /// That a file of it is not what the origin has.
    pub(crate) fn wrong(&self, file: usize, why: &str) -> Refusal {
        let path = &self.files[file].0;
        Refusal::new(FailureKind::Corrupt, format!("{}/{path}: {why}; open it again", self.manifest.source))
    }

    /// Whether its transfer goes on, or may do so yet.
    pub(crate) fn check_condition(&mut self) -> Result<(), Refusal> {
        match &*self.condition.borrow_and_update() {
            Condition::Fine | Condition::Failed { is_lasting: false, .. } => Ok(()),
            Condition::Failed { why, is_corrupt: false, .. } => {
                Err(Refusal::new(FailureKind::Unavailable, why.to_string()))
            }
            Condition::Failed { why, .. } | Condition::Stopped(why) => {
                Err(Refusal::new(FailureKind::Corrupt, why.to_string()))
            }
        }
    }

    /// The names of the files that are meant.
    async fn names(&self, named: &[String]) -> Result<Vec<String>, Refusal> {
        let manifest = &self.manifest;
        if !named.is_empty() {
            return Ok(named.to_vec());
        }
        let paths = manifest.objects.iter().map(|entry| entry.object.path.as_str());
        match ModelFiles::among(paths.filter(|path| !path.contains('/'))) {
            ModelFiles::All(names) => Ok(names.into_iter().map(str::to_owned).collect()),
            ModelFiles::Index(name) => {
                let json = self.read_small(name).await?;
                files::shards(manifest, name, &json)
            }
            ModelFiles::None => Err(Refusal::new(
                FailureKind::NotFound,
                format!("{} has no .safetensors file at its top", manifest.source),
            )),
            ModelFiles::Ambiguous(indices) => Err(Refusal::usage(format!(
                "{} has {} indices ({}): name the files of one model",
                manifest.source,
                indices.len(),
                indices.join(", ")
            ))),
        }
    }

    /// The header that a blob begins with, and the blob's length.
    async fn header(&self, entry: &SnapshotEntry) -> Result<(SafetensorsHeader, u64), Refusal> {
        let (manifest, inner) = (&*self.manifest, &self.inner);
        if let Some(found) = files::header(inner.store(), inner.chunks.demands(), manifest, entry).await? {
            return Ok(found);
        }
        let size = entry.object.size;
        let invalid = |error| {
            Refusal::new(FailureKind::Corrupt, format!("{}/{} {error}", manifest.source, entry.object.path))
        };
        if size < HEADER_LENGTH_BYTES {
            return Err(invalid(HeaderError::TooShort(size)));
        }
        let first = self.read_front(entry, HEADER_LENGTH_BYTES).await?;
        let bytes = SafetensorsHeader::length(&first, size).map_err(invalid)?;
        let raw = self.read_front(entry, bytes).await?;
        Ok((SafetensorsHeader::parse(raw.into(), size).map_err(invalid)?, size))
    }

    /// Reads a small file whole.
    async fn read_small(&self, name: &str) -> Result<Vec<u8>, Refusal> {
        let manifest = &self.manifest;
        let entry = manifest.objects.iter().find(|entry| entry.object.path.as_str() == name);
        let entry = entry.ok_or_else(|| Refusal::usage(format!("{} has no {name}", manifest.source)))?;
        let too_long =
            |error| Refusal::new(FailureKind::Corrupt, format!("{}/{name} {error}", manifest.source));
        WeightIndex::check_length(entry.object.size).map_err(too_long)?;
        self.read_front(entry, entry.object.size).await
    }

    /// Reads the first bytes of an object in the original layout.
    async fn read_front(&self, entry: &SnapshotEntry, bytes: u64) -> Result<Vec<u8>, Refusal> {
        let (manifest, inner) = (&*self.manifest, &self.inner);
        let mut read = Vec::new();
        for chunk in chunks_of(ByteRange::new(0, bytes)) {
            let range = ByteRange::of_chunk(chunk, entry.object.size);
            let (snapshot, blob) = (manifest.key(), entry.blob);
            let target = Target::now(snapshot, blob, chunk, range);
            let loaded = inner.chunks.load(self.condition.clone(), target, &inner.cache).await;
            let failed = |why| {
                let message = format!("{}/{}: {why}", manifest.source, entry.object.path);
                Refusal::new(FailureKind::Unavailable, message)
            };
            read.extend_from_slice(&loaded.map_err(failed)?.buffer);
        }
        read.truncate(usize::try_from(bytes).unwrap_or(usize::MAX));
        Ok(read)
    }
}

/// How a client wants tensors to be cut.
fn slicing(open: &HandoffOpen) -> Result<Slicing, Refusal> {
    let rules = open.slices.iter().map(|slice| {
        let [dimension, part, parts] =
            [slice.dimension, slice.part, slice.parts].map(|number| number as usize);
        (slice.tensors.clone(), (parts > 0).then_some(Cut { dimension, part, parts }))
    });
    Slicing::new(rules).map_err(|error| Refusal::usage(error.to_string()))
}
