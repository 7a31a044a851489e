//! A plain HTTP server without a listing: files at fixed paths.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{HeaderMap, Response, StatusCode, header},
};
use bytes::Bytes;
use percent_encoding::percent_decode_str;

use crate::serve::{RequestLog, Serving, plain, ranged};

/// A file that is served.
#[derive(Debug, Clone)]
pub struct StaticFile {
    /// What it holds.
    pub bytes: Bytes,
    /// Sent as it is, so with its quotes. `If-Match` and `If-Range` are honoured.
    pub etag: Option<String>,
    /// Whether ranges are honoured; a server that does not sends the whole file with status 200.
    pub ranges: bool,
}

impl StaticFile {
    /// A file with ranges and an etag that is its crc32c.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let etag = Some(format!("\"{:08x}\"", crc32c::crc32c(&bytes)));
        Self { bytes, etag, ranges: true }
    }
}

/// What is at a path.
#[derive(Debug, Clone)]
enum Place {
    File(StaticFile),
    /// What `Location` says.
    Elsewhere(String),
}

type Places = Arc<Mutex<BTreeMap<String, Place>>>;

/// A running server.
#[derive(Debug)]
pub struct StaticServer {
    serving: Serving,
    places: Places,
    log: RequestLog,
}

impl StaticServer {
    /// Starts one without files.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start() -> Result<Self> {
        let (places, log) = (Places::default(), RequestLog::default());
        let shared = (places.clone(), log.clone());
        let routes = Router::new().fallback(move |request: Request| async move {
            let (places, log) = shared;
            log.record(&request);
            let path = percent_decode_str(request.uri().path()).decode_utf8_lossy().into_owned();
            let place = places.lock().unwrap_or_else(PoisonError::into_inner).get(&path).cloned();
            match place {
                None => plain(StatusCode::NOT_FOUND, "no such file"),
                Some(Place::File(file)) => answer(&file, request.headers()),
                Some(Place::Elsewhere(location)) => elsewhere(&location),
            }
        });
        Ok(Self { serving: Serving::start(routes).await?, places, log })
    }

    /// Scheme, host and port.
    pub fn url(&self) -> String {
        self.serving.url()
    }

    /// Serves a file at `path`, which begins with a slash; or replaces it.
    pub fn put(&self, path: &str, file: StaticFile) {
        self.place(path, Place::File(file));
    }

    /// Redirects whoever asks for `path`, which begins with a slash.
    pub fn redirect(&self, path: &str, location: &str) {
        self.place(path, Place::Elsewhere(location.to_owned()));
    }

    fn place(&self, path: &str, place: Place) {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned(), place);
    }

    /// Serves the files of a directory, not of those below it, under `prefix/`.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn put_directory(&self, prefix: &str, directory: &Path) -> Result<()> {
        for entry in fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            self.put(&format!("{prefix}/{name}"), StaticFile::new(fs::read(&path)?));
        }
        Ok(())
    }

    /// Serves it no longer.
    pub fn remove(&self, path: &str) {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).remove(path);
    }

    /// All requests so far.
    pub fn requests(&self) -> &RequestLog {
        &self.log
    }
}

fn answer(file: &StaticFile, headers: &HeaderMap) -> Response<Body> {
    let sent = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(wanted) = sent(header::IF_MATCH)
        && wanted != "*"
        && Some(wanted) != file.etag.as_deref()
    {
        return plain(StatusCode::PRECONDITION_FAILED, "it has changed");
    }
    let stale = sent(header::IF_RANGE).is_some_and(|wanted| Some(wanted) != file.etag.as_deref());
    let mut answer = if file.ranges && !stale {
        ranged(&file.bytes, headers)
    } else {
        Response::new(Body::from(file.bytes.clone()))
    };
    if let Some(etag) = file.etag.as_deref().and_then(|etag| etag.parse().ok()) {
        answer.headers_mut().insert(header::ETAG, etag);
    }
    answer
}

fn elsewhere(location: &str) -> Response<Body> {
    let mut answer = plain(StatusCode::FOUND, "");
    if let Ok(location) = location.parse() {
        answer.headers_mut().insert(header::LOCATION, location);
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve;

    #[tokio::test]
    async fn ranges_and_versions_are_honoured_when_they_are_on() {
        let server = StaticServer::start().await.unwrap();
        server.put("/m/a b", StaticFile::new("0123456789"));
        let url = format!("{}/m/a%20b", server.url());
        let client = serve::client();
        let get = || client.get(&url).header("range", "bytes=2-4");
        let part = get().send().await.unwrap();
        let etag = part.headers()["etag"].clone();
        assert_eq!((part.status().as_u16(), part.text().await.unwrap().as_str()), (206, "234"));
        assert_eq!(client.head(&url).send().await.unwrap().headers()["content-length"], "10");

        server.put("/m/a b", StaticFile { ranges: false, ..StaticFile::new("new") });
        assert_eq!(get().header("if-match", etag).send().await.unwrap().status(), 412);
        let whole = get().send().await.unwrap();
        assert_eq!((whole.status().as_u16(), whole.text().await.unwrap().as_str()), (200, "new"));
        server.remove("/m/a b");
        assert_eq!(get().send().await.unwrap().status(), 404);
        assert_eq!(server.requests().all().len(), 5);
        server.redirect("/m/a b", "/m/c");
        server.put("/m/c", StaticFile::new("there"));
        assert_eq!(client.get(&url).send().await.unwrap().text().await.unwrap(), "there");
        assert_eq!(server.requests().all()[0].header("range"), Some("bytes=2-4"));
    }
}
