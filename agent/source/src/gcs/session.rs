//! A resumable upload as the service keeps it: begun, sent in parts, asked for what is there of it.

use std::{convert::Infallible, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use reqwest::{Body, RequestBuilder, Response};
use serde::Deserialize;
use tokio::{
    sync::Notify,
    time::{Duration, timeout},
};
use url::Url;
use weightd_types::{Crc32c, SourceUri};

use super::{GcsClient, error, listing::crc32c_of};
use crate::{
    SourceError,
    answer::{Answer, BODY_BYTES, broke_off, no_answer},
};

const GOOG_HASH: HeaderName = HeaderName::from_static("x-goog-hash");
/// How long nothing of a request is taken, and nothing answered, before it is given up.
const SILENCE: Duration = Duration::from_mins(1);
/// Bytes of a body that are taken at once, as far as can be seen here.
const TAKEN_BYTES: usize = 64 << 10;
/// A part came, and is not the last.
const RESUME_INCOMPLETE: StatusCode = StatusCode::PERMANENT_REDIRECT;

/// An upload that was begun.
#[derive(Debug)]
pub(super) struct Session {
    client: Arc<GcsClient>,
    web: reqwest::Client,
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
    /// Begins the upload of an object of so many bytes in the place of a generation; 0 for the place of nothing. `web` waits for
    /// answers.
    pub(super) async fn begin(
        client: &Arc<GcsClient>,
        web: &reqwest::Client,
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
        let url = place(&client.endpoint, response.headers()).ok_or_else(|| SourceError::Protocol {
            what,
            detail: "an upload was begun, and its address was not said".to_owned(),
        })?;
        Ok(Self { client: Arc::clone(client), web: web.clone(), uri: uri.clone(), url, bytes })
    }

    /// Sends the bytes behind the first `at`. With those that end the object comes the checksum of all of it.
    pub(super) async fn send(
        &self,
        at: u64,
        part: Vec<Bytes>,
        whole: Option<Crc32c>,
    ) -> Result<Standing, SourceError> {
        let taken = Arc::new(Notify::new());
        let (length, body) = body(part, &taken);
        let range = match length {
            0 => format!("bytes */{}", self.bytes),
            _ => format!("bytes {at}-{}/{}", at + length - 1, self.bytes),
        };
        let mut headers = HeaderMap::new();
        if let Some(sum) = whole {
            let sum = format!("crc32c={}", STANDARD.encode(sum.0.to_be_bytes()));
            headers.insert(GOOG_HASH, HeaderValue::from_str(&sum).expect("base64 is ASCII"));
        }
        self.put(&range, headers, (length, body), &taken).await
    }

    /// Asks what is there.
    pub(super) async fn standing(&self) -> Result<Standing, SourceError> {
        let nothing = (0, Body::default());
        self.put(&format!("bytes */{}", self.bytes), HeaderMap::new(), nothing, &Notify::new()).await
    }

    async fn put(
        &self,
        range: &str,
        headers: HeaderMap,
        (length, body): (u64, Body),
        taken: &Notify,
    ) -> Result<Standing, SourceError> {
        let what = self.uri.to_string();
        let request = self.web.put(self.url.clone()).headers(self.client.headers(&what).await?);
        let request = request
            .headers(headers)
            .header(header::CONTENT_RANGE, range)
            .header(header::CONTENT_LENGTH, length)
            .body(body);
        let silence = async { while timeout(SILENCE, taken.notified()).await.is_ok() {} };
        tokio::select! {
            answered = self.answered(request) => answered,
            () = silence => {
                let cause = format!("nothing was taken or answered for {} seconds", SILENCE.as_secs());
                Err(SourceError::Unavailable { what, cause: cause.into(), retry_after: None })
            }
        }
    }

    async fn answered(&self, request: RequestBuilder) -> Result<Standing, SourceError> {
        let what = self.uri.to_string();
        // Whoever knows the address of an upload can write to it.
        let response = request.send().await.map_err(|error| no_answer(&what, &error.without_url()))?;
        match response.status() {
            StatusCode::OK | StatusCode::CREATED => self.ended(response).await.map(Standing::Ended),
            RESUME_INCOMPLETE => self.kept(response.headers()).map(Standing::Open),
            StatusCode::NOT_FOUND | StatusCode::GONE => Err(SourceError::Refused {
                what,
                why: "was not written: the service no longer knows its upload".to_owned(),
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

    async fn ended(&self, mut response: Response) -> Result<Written, SourceError> {
        let mut body = Vec::new();
        let broke = |error: reqwest::Error| broke_off(&self.uri.to_string(), &error.without_url());
        while let Some(piece) = response.chunk().await.map_err(broke)?
            && body.len() <= BODY_BYTES
        {
            body.extend_from_slice(&piece);
        }
        written(&body).ok_or_else(|| self.nonsense("it does not say what was written".to_owned()))
    }

    pub(super) fn nonsense(&self, detail: String) -> SourceError {
        SourceError::Protocol { what: self.uri.to_string(), detail }
    }

    pub(super) fn interrupted(&self, why: &str) -> SourceError {
        SourceError::Interrupted { what: self.uri.to_string(), cause: why.into() }
    }
}

/// Bytes as the body of a request, and its length. Says each time that something of it is taken.
fn body(part: Vec<Bytes>, taken: &Arc<Notify>) -> (u64, Body) {
    let length = part.iter().map(|piece| piece.len() as u64).sum();
    let taken = Arc::clone(taken);
    let pieces = part.into_iter().flat_map(|mut bytes| {
        std::iter::from_fn(move || (!bytes.is_empty()).then(|| bytes.split_to(bytes.len().min(TAKEN_BYTES))))
    });
    let pieces = pieces.inspect(move |_| taken.notify_one()).map(Ok::<_, Infallible>);
    (length, Body::wrap_stream(stream::iter(pieces)))
}

/// What an object's resource says of it.
fn written(resource: &[u8]) -> Option<Written> {
    /// 64-bit numbers are written as strings.
    #[derive(Deserialize)]
    struct Resource {
        size: String,
        crc32c: Option<String>,
    }
    let Resource { size, crc32c } = serde_json::from_slice(resource).ok()?;
    let crc32c = match crc32c {
        Some(text) => Some(crc32c_of(&text)?),
        None => None,
    };
    Some(Written { bytes: size.parse().ok()?, crc32c })
}

/// Where the parts of an upload go: to the endpoint at which it was begun, whatever host the service names. Only that one may see
/// credentials.
fn place(endpoint: &Url, headers: &HeaderMap) -> Option<Url> {
    let location = endpoint.join(headers.get(header::LOCATION)?.to_str().ok()?).ok()?;
    let prefix = endpoint.path().trim_end_matches('/');
    let mut place = endpoint.clone();
    match location.path().strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/')) {
        true => place.set_path(location.path()),
        false => place.set_path(&format!("{prefix}{}", location.path())),
    }
    place.set_query(location.query());
    Some(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_go_to_the_endpoint_whatever_the_service_calls_itself() {
        for (endpoint, location, placed) in [
            ("https://g/", "https://g/upload/o?upload_id=1", "https://g/upload/o?upload_id=1"),
            ("http://[::1]:80/", "https://other:9/upload/o?upload_id=1", "http://[::1]/upload/o?upload_id=1"),
            ("https://proxy/gcs", "https://g/upload/o?upload_id=1", "https://proxy/gcs/upload/o?upload_id=1"),
            ("https://proxy/gcs/", "https://proxy/gcs/upload/o?a=1", "https://proxy/gcs/upload/o?a=1"),
            ("https://g/", "/upload/o?upload_id=1", "https://g/upload/o?upload_id=1"),
        ] {
            let headers = [(header::LOCATION, location.parse().unwrap())].into_iter().collect();
            assert_eq!(place(&endpoint.parse().unwrap(), &headers).unwrap().as_str(), placed);
        }
        assert_eq!(place(&"https://g/".parse().unwrap(), &HeaderMap::new()), None);
    }

    #[test]
    fn any_bytes_are_what_was_written_or_not_without_a_panic() {
        let said = written(br#"{"size":"3","crc32c":"ik4kog=="}"#).unwrap();
        assert_eq!((said.bytes, said.crc32c), (3, Some(Crc32c(0x8a4e_24a2))));
        assert!(written(br#"{"size":"3","crc32c":"short"}"#).is_none());
        bolero::check!().for_each(|bytes: &[u8]| {
            let _ = written(bytes);
        });
    }
}
