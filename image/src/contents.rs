//! What goes into an image: sources become snapshots, and every blob is known before a byte of it is fetched.

use std::{collections::BTreeMap, sync::Arc};

use futures::{StreamExt, TryStreamExt, stream};
use weightd_fetch::{Line, Prepared, Route, ShardIndex};
use weightd_source::{Opener, Resolution};
use weightd_store::{SnapshotManifest, WantedBlob};
use weightd_types::{BlobKey, Layout, SafetensorsHeader, Selection, SourceUri, WeightIndex};

use crate::ImageError;

/// Headers fetched at once.
const HEADERS_AT_ONCE: usize = 16;

/// A model that an image is to hold.
#[derive(Debug, Clone)]
pub struct Model {
    /// Where it is.
    pub source: SourceUri,
    /// Which of its files.
    pub selection: Selection,
    /// How its safetensors are placed.
    pub layout: Layout,
}

/// What an image is to hold.
pub(crate) struct Contents {
    /// The snapshots, in the order they were asked for, none twice.
    pub(crate) snapshots: Vec<SnapshotManifest>,
    /// Their blobs, by snapshot and then by path, none twice.
    pub(crate) blobs: Vec<Blob>,
}

/// One blob, and where its object is.
pub(crate) struct Blob {
    pub(crate) route: Route,
    pub(crate) wanted: WantedBlob,
    /// Of safetensors, whatever the layout.
    header: Option<SafetensorsHeader>,
}

impl Contents {
    /// Lists the sources, and fetches the headers of their safetensors. `resolved_at` is what the snapshots say, in seconds
    /// since 1970: an image of the same objects is the same image, whenever it is built.
    pub(crate) async fn gather(
        line: &Line,
        opener: &dyn Opener,
        models: &[Model],
        resolved_at: u64,
    ) -> Result<Self, ImageError> {
        let mut contents = Self { snapshots: Vec::new(), blobs: Vec::new() };
        let mut known = BTreeMap::new();
        for model in models {
            let resolution = line.resolve(opener, &model.source, &model.selection).await?;
            let manifest = SnapshotManifest::new(&resolution.snapshot, model.layout, resolved_at);
            if contents.snapshots.iter().any(|other| other.key() == manifest.key()) {
                continue;
            }
            let of_model = contents.add(line, opener, &manifest, &mut known).await?;
            contents.check_indices(line, &manifest, &resolution, &of_model).await?;
            contents.snapshots.push(manifest);
        }
        Ok(contents)
    }

    /// Adds the blobs of a snapshot that are not there yet. Gives the place of each of its objects' blobs.
    async fn add(
        &mut self,
        line: &Line,
        opener: &dyn Opener,
        manifest: &SnapshotManifest,
        known: &mut BTreeMap<BlobKey, usize>,
    ) -> Result<Vec<usize>, ImageError> {
        let source = opener.open(&manifest.source).await.map_err(weightd_fetch::FetchError::from)?;
        let (mut places, mut new) = (Vec::with_capacity(manifest.objects.len()), Vec::new());
        for entry in &manifest.objects {
            let next = self.blobs.len() + new.len();
            let place = *known.entry(entry.blob).or_insert(next);
            if place == next {
                let url = manifest.source.object_url(&entry.object.path);
                let route = Route { source: Arc::clone(&source), object: entry.object.clone(), url };
                new.push((entry.blob, route));
            }
            places.push(place);
        }
        let blobs = stream::iter(new).map(|(key, route)| Blob::prepare(line, key, route));
        self.blobs.extend(blobs.buffered(HEADERS_AT_ONCE).try_collect::<Vec<_>>().await?);
        Ok(places)
    }

    /// Holds each index of a snapshot to its shards, as a prefetch does.
    async fn check_indices(
        &self,
        line: &Line,
        manifest: &SnapshotManifest,
        resolution: &Resolution,
        places: &[usize],
    ) -> Result<(), ImageError> {
        let left_out: Vec<_> = resolution.left_out.iter().map(|object| object.path.clone()).collect();
        for (at, entry) in manifest.objects.iter().enumerate() {
            if !entry.object.path.is_safetensors_index() || entry.object.size == 0 {
                continue;
            }
            let route = &self.blobs[places[at]].route;
            let refused = |source| weightd_fetch::FetchError::WeightIndex { url: route.url.clone(), source };
            WeightIndex::check_length(entry.object.size).map_err(refused)?;
            let whole = weightd_types::ByteRange::new(0, entry.object.size);
            let json = line.read(route, whole).collect().await?;
            let index = ShardIndex::read(&json, at, manifest, Some(&left_out)).map_err(refused)?;
            for (shard, position) in index.shards() {
                let header = self.blobs[places[*position]].header.as_ref();
                let has_tensor = |tensor: &str| header.is_some_and(|header| header.has_tensor(tensor));
                index.check_tensors(shard, has_tensor).map_err(refused)?;
            }
        }
        Ok(())
    }
}

impl Blob {
    async fn prepare(line: &Line, key: BlobKey, route: Route) -> Result<Self, ImageError> {
        let header = match route.object.path.is_safetensors() {
            true => Some(line.header(&route).await?),
            false => None,
        };
        let Prepared { wanted, header } = Prepared::new(key, &route, header)?;
        Ok(Self { route, wanted, header })
    }

    /// Length of its file in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.wanted.placement.blob_len()
    }
}
