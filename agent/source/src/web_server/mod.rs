//! `http://` and `https://`: a web server.
//!
//! A server that speaks WebDAV is listed. A plain one cannot be, so what a model is made of is asked for by name:
//! see [`well_known`]. A URL may also name one file. Either way a server must answer requests for ranges, and
//! tell versions apart by `ETag` or, less exactly, by `Last-Modified`.

mod well_known;

use std::sync::Arc;

use async_trait::async_trait;
use http::StatusCode;
use object_store::{GetOptions, ObjectMeta, ObjectStore, http::HttpStore, path::Path};
use weightd_types::{ByteRange, Checksums, Object, SourceUri, Version};

use crate::{
    ByteStream, Listed, Source, SourceError,
    answer::{Answer, find},
    cloud::{self, etag, quoted},
    pages::Endless,
};

/// Begins a version that is a time: the server gives no entity tags.
const LAST_MODIFIED: &str = "last-modified:";

/// A directory of a web server, or one file.
#[derive(Debug)]
pub struct HttpSource {
    server: Arc<HttpStore>,
    uri: SourceUri,
}

impl HttpSource {
    pub(crate) fn new(server: Arc<HttpStore>, uri: SourceUri) -> Self {
        Self { server, uri }
    }

    /// What a WebDAV server lists; nothing where no such server answers.
    async fn collection(&self) -> Result<Option<Vec<ObjectMeta>>, SourceError> {
        let prefix = cloud::path(self.uri.prefix(), &self.uri.to_string())?;
        let deep = cloud::one_listing(cloud::collect(self.server.list(Some(&prefix)))).await;
        match deep {
            Ok(metas) => Ok(Some(metas)),
            Err(error) => match find::<Answer>(&error).map(|answer| answer.status) {
                // Apache, among others, lists one level at a time only.
                Some(StatusCode::FORBIDDEN) => match cloud::one_listing(self.level_by_level(prefix)).await {
                    Err(error) if find::<Endless>(&error).is_some() => {
                        Err(cloud::error::of_listing(&error, &self.uri))
                    }
                    levels => Ok(levels.ok()),
                },
                Some(StatusCode::UNAUTHORIZED) => Err(cloud::error::of_listing(&error, &self.uri)),
                Some(status) if later(status) => Err(cloud::error::of_listing(&error, &self.uri)),
                // Any other answer is that of a server which does not know the method.
                Some(_) => Ok(None),
                None if find::<Endless>(&error).is_some()
                    || find::<object_store::client::HttpError>(&error).is_some() =>
                {
                    Err(cloud::error::of_listing(&error, &self.uri))
                }
                None => Ok(None),
            },
        }
    }

    async fn level_by_level(&self, prefix: Path) -> object_store::Result<Vec<ObjectMeta>> {
        let (mut metas, mut directories) = (Vec::new(), vec![prefix]);
        while let Some(directory) = directories.pop() {
            let level = self.server.list_with_delimiter(Some(&directory)).await?;
            metas.extend(level.objects);
            cloud::check_count(metas.len() + directories.len())?;
            for directory in level.common_prefixes {
                let name = cloud::names::of(&directory).map(|name| Path::parse(&*name));
                match name {
                    Ok(Ok(directory)) => directories.push(directory),
                    // It cannot be asked for, and what is below it must not be left out in silence.
                    _ => metas.push(nameless(directory)),
                }
            }
        }
        Ok(metas)
    }

    fn listed(&self, name: String, meta: &ObjectMeta) -> Listed {
        match version(meta) {
            Some(version) => Listed::new(&self.uri, name, meta.size, version, Checksums::default()),
            None => self.refused(&name, unversioned),
        }
    }

    fn refused(&self, name: &str, why: impl Fn(String) -> SourceError) -> Listed {
        Listed::Unfit { name: name.to_owned(), why: why(format!("{}/{name}", self.uri.root())) }
    }

    /// Where an object may be: the URL itself may be the file, and nothing but trying tells.
    fn places(&self, object: &Object) -> Vec<(String, String)> {
        let below = (self.uri.object_key(&object.path), self.uri.object_url(&object.path));
        let last = self.uri.prefix().rsplit('/').next().unwrap_or_default();
        if last == object.path.as_str() {
            return vec![(self.uri.prefix().to_owned(), self.uri.root()), below];
        }
        vec![below]
    }

    async fn read_at(
        &self,
        key: &str,
        what: String,
        object: &Object,
        range: ByteRange,
    ) -> Result<ByteStream, SourceError> {
        let path = cloud::path(key, &what)?;
        let pinned = etag(object, &what)?;
        // Weak tags never match a condition, and times are no tags: those are compared with the answer only.
        let condition = pinned.starts_with('"').then_some(pinned);
        let options = GetOptions::new().with_range(Some(range.start..range.end)).with_if_match(condition);
        let result = self.server.get_opts(&path, options).await;
        let result = result.map_err(|error| cloud::error::of_read(&error, &self.uri, &what, object))?;
        let same = if pinned.starts_with(LAST_MODIFIED) {
            time(&result.meta) == pinned
        } else {
            result.meta.e_tag.as_deref().map(quoted).as_deref() == Some(pinned)
        };
        if !same {
            return Err(SourceError::Changed { what, expected: object.version.to_string() });
        }
        Ok(cloud::body(result, what))
    }
}

#[async_trait]
impl Source for HttpSource {
    async fn list(&self) -> Result<Vec<Listed>, SourceError> {
        let metas = self.collection().await?.unwrap_or_default();
        let entries =
            metas.iter().map(|meta| cloud::entry(&self.uri, meta, |name| Ok(self.listed(name, meta))));
        let listing: Vec<Listed> = entries.filter_map(Result::transpose).collect::<Result<_, _>>()?;
        if listing.is_empty() { well_known::list(self).await } else { Ok(listing) }
    }

    async fn read(&self, object: &Object, range: ByteRange) -> Result<ByteStream, SourceError> {
        let mut failure = None;
        for (key, what) in self.places(object) {
            match self.read_at(&key, what, object, range).await {
                Err(error @ (SourceError::Changed { .. } | SourceError::Refused { .. })) => {
                    failure = Some(error);
                }
                result => return result,
            }
        }
        Err(failure.unwrap_or_else(|| SourceError::Protocol {
            what: self.uri.to_string(),
            detail: "it has no place".to_owned(),
        }))
    }
}

/// A directory whose name the library would not take, as an entry that will be refused by name.
fn nameless(location: Path) -> ObjectMeta {
    let (e_tag, last_modified) = (Some("directory".to_owned()), Default::default());
    ObjectMeta { location, last_modified, size: 0, e_tag, version: None }
}

fn later(status: StatusCode) -> bool {
    let unknown_method = status == StatusCode::NOT_IMPLEMENTED;
    status == StatusCode::TOO_MANY_REQUESTS || (status.is_server_error() && !unknown_method)
}

fn version(meta: &ObjectMeta) -> Option<Version> {
    match &meta.e_tag {
        Some(tag) => Some(Version::Etag(quoted(tag))),
        None if meta.last_modified.timestamp() > 0 => Some(Version::Etag(time(meta))),
        None => None,
    }
}

fn time(meta: &ObjectMeta) -> String {
    format!("{LAST_MODIFIED}{}", meta.last_modified.timestamp())
}

fn unversioned(what: String) -> SourceError {
    SourceError::Refused {
        what,
        why:
            "the server gives neither ETag nor Last-Modified, so a change during a transfer could not be seen"
                .to_owned(),
        remedy: "serve it with a server that gives one of them".to_owned(),
    }
}
