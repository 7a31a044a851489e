//! `s3://` and `az://`, through the `object_store` crate.
//!
//! Its retries are off, because the fetch room does them for all origins alike, and bodies are streamed: its
//! `get_range` would hold a whole range in memory.

mod builders;
mod connector;
pub(crate) mod error;
mod listing;
pub(crate) mod names;
mod profile;

use std::sync::Arc;

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{GetOptions, GetResult, ObjectMeta, ObjectStore, ObjectStoreExt, path::Path};
use weightd_types::{ByteRange, Checksums, Object, SourceUri, Version};

pub(crate) use self::{
    builders::{open, web},
    connector::one_listing,
    listing::entry,
};
use self::{connector::Connector, listing::drop_markers};
use crate::{ByteStream, Listed, Source, SourceError, answer::broke_off, pages};

/// A prefix of a bucket or container.
#[derive(Debug)]
pub struct ObjectStoreSource {
    store: Arc<dyn ObjectStore>,
    uri: SourceUri,
}

impl ObjectStoreSource {
    pub(crate) fn new(store: Arc<dyn ObjectStore>, uri: SourceUri) -> Self {
        Self { store, uri }
    }

    fn listed(&self, name: String, meta: &ObjectMeta) -> Result<Listed, SourceError> {
        // Entity tags are versions only: an S3 tag is the MD5 of some objects and not of others, and nothing in
        // a listing tells which.
        let Some(etag) = &meta.e_tag else {
            return Err(SourceError::Protocol {
                what: format!("{}/{name}", self.uri.root()),
                detail: "it was listed without an entity tag".to_owned(),
            });
        };
        let version = Version::Etag(quoted(etag));
        Ok(Listed::new(&self.uri, name, meta.size, version, Checksums::default()))
    }

    /// The error of a prefix without objects.
    async fn nothing(&self) -> SourceError {
        let is_object = match Path::parse(self.uri.prefix()) {
            Ok(path) if !self.uri.prefix().is_empty() => self.store.head(&path).await.is_ok(),
            _ => false,
        };
        SourceError::nothing_below(&self.uri, is_object)
    }
}

#[async_trait]
impl Source for ObjectStoreSource {
    async fn list(&self) -> Result<Vec<Listed>, SourceError> {
        let failed = |error| error::of_listing(&error, &self.uri);
        let prefix = path(self.uri.prefix(), &self.uri.to_string())?;
        let mut metas = one_listing(collect(self.store.list(Some(&prefix)))).await.map_err(failed)?;
        drop_markers(&mut metas);
        let entries = metas.iter().map(|meta| entry(&self.uri, meta, |name| self.listed(name, meta)));
        let listing: Vec<Listed> = entries.filter_map(Result::transpose).collect::<Result<_, _>>()?;
        if listing.is_empty() {
            return Err(self.nothing().await);
        }
        Ok(listing)
    }

    async fn read(&self, object: &Object, range: ByteRange) -> Result<ByteStream, SourceError> {
        let what = self.uri.object_url(&object.path);
        let path = path(&self.uri.object_key(&object.path), &what)?;
        let etag = etag(object, &what)?;
        let options = GetOptions::new().with_range(Some(range.start..range.end)).with_if_match(Some(etag));
        let result = self.store.get_opts(&path, options).await;
        let result = result.map_err(|error| error::of_read(&error, &self.uri, &what, object))?;
        if result.meta.e_tag.as_deref().map(quoted).as_deref() != Some(etag) {
            return Err(SourceError::Changed { what, expected: object.version.to_string() });
        }
        Ok(body(result, what))
    }
}

/// What a listing gives, unless it is too much.
pub(crate) async fn collect(
    mut listing: BoxStream<'_, object_store::Result<ObjectMeta>>,
) -> object_store::Result<Vec<ObjectMeta>> {
    let mut metas = Vec::new();
    while let Some(meta) = listing.try_next().await? {
        metas.push(meta);
        check_count(metas.len())?;
    }
    Ok(metas)
}

/// As an error of the library.
pub(crate) fn check_count(objects: usize) -> object_store::Result<()> {
    let generic = |endless| object_store::Error::Generic { store: "listing", source: Box::new(endless) };
    pages::check_count(objects).map_err(generic)
}

/// A name as a path of the library, which takes names as they are unless a part is empty, `.` or `..`.
pub(crate) fn path(name: &str, what: &str) -> Result<Path, SourceError> {
    let invalid = |error: object_store::path::Error| SourceError::Protocol {
        what: what.to_owned(),
        detail: error.to_string(),
    };
    Path::parse(name).map_err(invalid)
}

/// The entity tag an object is pinned to.
pub(crate) fn etag<'a>(object: &'a Object, what: &str) -> Result<&'a str, SourceError> {
    match &object.version {
        Version::Etag(etag) => Ok(etag),
        Version::Generation(_) | Version::Git { .. } => Err(SourceError::Protocol {
            what: what.to_owned(),
            detail: format!("{} is not a version of this origin", object.version),
        }),
    }
}

/// An entity tag as headers have it: Azure, and some web servers, leave the quotes out of their listings.
pub(crate) fn quoted(tag: &str) -> String {
    if tag.ends_with('"') { tag.to_owned() } else { format!("\"{tag}\"") }
}

pub(crate) fn body(result: GetResult, what: String) -> ByteStream {
    result.into_stream().map_err(move |error| broke_off(&what, &error)).boxed()
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn markers_of_directories_are_no_objects() {
        let store = InMemory::new();
        for (name, bytes) in [("m/sub", ""), ("m/sub/a", "x"), ("m/empty", ""), ("m2/b", "x")] {
            store.put(&Path::parse(name).unwrap(), bytes.into()).await.unwrap();
        }
        let source = ObjectStoreSource::new(Arc::new(store), "s3://b/m".parse().unwrap());
        let listing = source.list().await.unwrap();
        let mut names: Vec<&str> = listing.iter().map(Listed::name).collect();
        names.sort_unstable();
        assert_eq!(names, ["empty", "sub/a"]);
    }

    #[tokio::test]
    async fn a_prefix_that_is_an_object_says_what_to_write() {
        let store = InMemory::new();
        store.put(&Path::parse("m/a").unwrap(), "x".into()).await.unwrap();
        let source = ObjectStoreSource::new(Arc::new(store), "s3://b/m/a".parse().unwrap());
        let error = source.list().await.unwrap_err().to_string();
        assert!(error.contains("write s3://b/m --include 'a'"), "{error}");
    }
}
