//! A resumable upload as the service keeps it: begun, sent to in parts, asked for what is there of it.

use std::{convert::Infallible, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use reqwest::{Body, Response};
use serde::Deserialize;
use url::Url;
use weightd_types::{Crc32c, SourceUri};

use super::{GcsClient, error, listing::decode};
use crate::{
    SourceError,
    answer::{Answer, broke_off, no_answer},
};

const GOOG_HASH: HeaderName = HeaderName::from_static("x-goog-hash");
/// A part came, and is not the last.
const RESUME_INCOMPLETE: StatusCode = StatusCode::PERMANENT_REDIRECT;

/// An upload that was begun.
#[derive(Debug)]
pub(super) struct Session {
    client: Arc<GcsClient>,
    uri: SourceUri,
    url: Url,
    /// Length of the object.
    bytes: u64,
}

/// What is there of an upload.
#[derive(Debug)]
pub(super) enum Standing {
    /// So many bytes from its beginning.
    Open(u64),
    /// The object.
    Ended(Written),
}

/// What the service says of an object: its length, and its checksum where it publishes one.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) bytes: u64,
    pub(super) crc32c: Option<Crc32c>,
}

impl Session {
    /// Begins the upload of an object of so many bytes in the place of a generation; 0 for the place of nothing.
    pub(super) async fn begin(
        client: &Arc<GcsClient>,
        uri: &SourceUri,
        bytes: u64,
        replaced: i64,
    ) -> Result<Self, SourceError> {
        let what = uri.to_string();
        let url = client.url(&["upload", "storage", "v1", "b", uri.authority(), "o"]);
        let replaced = replaced.to_string();
        let query =
            [("uploadType", "resumable"), ("name", uri.prefix()), ("ifGenerationMatch", replaced.as_str())];
        let request = client.web.post(url).query(&query).headers(client.headers(&what).await?);
        let request = request
            .header("x-upload-content-type", "application/octet-stream")
            .header("x-upload-content-length", bytes)
            .header(header::CONTENT_LENGTH, 0);
        let response = request.send().await.map_err(|error| no_answer(&what, &error))?;
        if response.status() != StatusCode::OK {
            return Err(error::of_writing(&Answer::read(response).await, uri, &client.settings));
        }
        let url = place(client, response.headers()).ok_or_else(|| SourceError::Protocol {
            what,
            detail: "an upload was begun, and its address was not said".to_owned(),
        })?;
        Ok(Self { client: Arc::clone(client), uri: uri.clone(), url, bytes })
    }

    /// Sends the bytes behind the first `at`. With those that end the object comes the checksum of all of it.
    pub(super) async fn send(
        &self,
        at: u64,
        part: Vec<Bytes>,
        whole: Option<Crc32c>,
    ) -> Result<Standing, SourceError> {
        let length: u64 = part.iter().map(|piece| piece.len() as u64).sum();
        let range = match length {
            0 => format!("bytes */{}", self.bytes),
            _ => format!("bytes {at}-{}/{}", at + length - 1, self.bytes),
        };
        let mut headers = HeaderMap::new();
        if let Some(sum) = whole {
            let sum = format!("crc32c={}", STANDARD.encode(sum.0.to_be_bytes()));
            headers.insert(GOOG_HASH, HeaderValue::from_str(&sum).expect("base64 is ASCII"));
        }
        let body = Body::wrap_stream(stream::iter(part.into_iter().map(Ok::<_, Infallible>)));
        self.put(&range, length, headers, body).await
    }

    /// Asks what is there.
    pub(super) async fn standing(&self) -> Result<Standing, SourceError> {
        self.put(&format!("bytes */{}", self.bytes), 0, HeaderMap::new(), Body::default()).await
    }

    async fn put(
        &self,
        range: &str,
        length: u64,
        headers: HeaderMap,
        body: Body,
    ) -> Result<Standing, SourceError> {
        let what = self.uri.to_string();
        let request = self.client.web.put(self.url.clone()).headers(self.client.headers(&what).await?);
        let request = request
            .headers(headers)
            .header(header::CONTENT_RANGE, range)
            .header(header::CONTENT_LENGTH, length)
            .body(body);
        let response = request.send().await.map_err(|error| no_answer(&what, &error))?;
        match response.status() {
            StatusCode::OK | StatusCode::CREATED => self.ended(response).await.map(Standing::Ended),
            RESUME_INCOMPLETE => self.kept(response.headers()).map(Standing::Open),
            StatusCode::NOT_FOUND | StatusCode::GONE => Err(SourceError::Refused {
                what,
                why: "was forgotten before its upload had ended".to_owned(),
                remedy: "build it again".to_owned(),
            }),
            _ => {
                let answer = Answer::read(response).await;
                Err(error::of_writing(&answer, &self.uri, &self.client.settings))
            }
        }
    }

    /// How much an answer says is kept: nothing, where it says nothing.
    fn kept(&self, headers: &HeaderMap) -> Result<u64, SourceError> {
        let Some(range) = headers.get(header::RANGE) else { return Ok(0) };
        let last = range.to_str().ok().and_then(|range| range.strip_prefix("bytes=0-")?.parse::<u64>().ok());
        let nonsense = || self.nonsense(format!("of an upload it says that {range:?} is kept"));
        last.and_then(|last| last.checked_add(1)).ok_or_else(nonsense)
    }

    async fn ended(&self, response: Response) -> Result<Written, SourceError> {
        /// 64-bit numbers are written as strings.
        #[derive(Deserialize)]
        struct Resource {
            size: String,
            crc32c: Option<String>,
        }
        let body = response.bytes().await.map_err(|error| broke_off(&self.uri.to_string(), &error))?;
        let written = serde_json::from_slice(&body).ok().and_then(|Resource { size, crc32c }| {
            let sum = |text: String| decode(&text).map(|bytes| Crc32c(u32::from_be_bytes(bytes)));
            let crc32c = match crc32c {
                Some(text) => Some(sum(text)?),
                None => None,
            };
            Some(Written { bytes: size.parse().ok()?, crc32c })
        });
        written.ok_or_else(|| self.nonsense("it does not say what was written".to_owned()))
    }

    fn nonsense(&self, detail: String) -> SourceError {
        SourceError::Protocol { what: self.uri.to_string(), detail }
    }
}

/// Where the parts of an upload go: to whom it was begun with, whatever name that one has for itself. It is the one that may see
/// credentials.
fn place(client: &GcsClient, headers: &HeaderMap) -> Option<Url> {
    let location = client.endpoint.join(headers.get(header::LOCATION)?.to_str().ok()?).ok()?;
    let mut place = client.endpoint.clone();
    place.set_path(location.path());
    place.set_query(location.query());
    Some(place)
}
