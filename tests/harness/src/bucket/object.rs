//! An object as it is stored, and what the two APIs say of it.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use base64::{Engine, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    content::{Claimed, Content},
    request::Named,
};
use crate::{Uploaded, name::segment};

/// What an uploader says of an object beside its bytes, as in the JSON API.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Described {
    pub(super) name: Option<String>,
    pub(super) content_type: Option<String>,
    pub(super) content_encoding: Option<String>,
    pub(super) cache_control: Option<String>,
    pub(super) metadata: Option<BTreeMap<String, String>>,
    pub(super) crc32c: Option<String>,
    pub(super) md5_hash: Option<String>,
}

/// An object of one generation.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) named: Named,
    pub(super) content: Content,
    pub(super) described: Described,
    /// Grows with every object that is written.
    pub(super) generation: i64,
    pub(super) created: SystemTime,
}

impl Described {
    /// The checksums that its bytes are said to have.
    pub(super) fn claimed(&self) -> Claimed {
        Claimed { crc32c: self.crc32c.clone(), md5: self.md5_hash.clone() }
    }
}

impl Stored {
    /// Nothing here changes what is said of an object without writing it again.
    pub(super) const METAGENERATION: i64 = 1;

    /// What is told of it in this process.
    pub(super) fn uploaded(&self) -> Uploaded {
        Uploaded {
            generation: self.generation,
            size: self.content.bytes.len() as u64,
            crc32c: self.content.crc32c.clone(),
        }
    }

    /// The resource of the JSON API, with links to a server.
    pub(super) fn resource(&self, endpoint: &str) -> Value {
        let Named { bucket, name } = &self.named;
        let (generation, size) = (self.generation, self.content.bytes.len());
        let path = format!("/storage/v1/b/{bucket}/o/{}", segment(name));
        let created = timestamp(self.created);
        let mut resource = json!({
            "kind": "storage#object",
            "id": format!("{bucket}/{name}/{generation}"),
            "selfLink": format!("{endpoint}{path}"),
            "mediaLink": format!("{endpoint}/download{path}?generation={generation}&alt=media"),
            "name": name,
            "bucket": bucket,
            "generation": generation.to_string(),
            "metageneration": Self::METAGENERATION.to_string(),
            "contentType": self.content_type(),
            "storageClass": "STANDARD",
            "size": size.to_string(),
            "crc32c": self.content.crc32c,
            "etag": self.etag(),
            "timeCreated": created,
            "updated": created,
            "timeStorageClassUpdated": created,
        });
        let more = [
            ("md5Hash", &self.content.md5),
            ("contentEncoding", &self.described.content_encoding),
            ("cacheControl", &self.described.cache_control),
        ];
        for (name, value) in more {
            if let Some(value) = value {
                resource[name] = json!(value);
            }
        }
        if let Some(metadata) = &self.described.metadata {
            resource["metadata"] = json!(metadata);
        }
        resource
    }

    /// The headers with which it is read. What is no header, such as a line break in a media type, is left out.
    pub(super) fn headers(&self) -> HeaderMap {
        let described = &self.described;
        let encoding = described.content_encoding.as_deref();
        let mut headers = HeaderMap::new();
        let mut say = |name: &'static str, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.append(HeaderName::from_static(name), value);
            }
        };
        say("x-goog-generation", &self.generation.to_string());
        say("x-goog-metageneration", &Self::METAGENERATION.to_string());
        // A line each, this one first: clients look no further.
        say("x-goog-hash", &format!("crc32c={}", self.content.crc32c));
        if let Some(md5) = &self.content.md5 {
            say("x-goog-hash", &format!("md5={md5}"));
        }
        say("x-goog-stored-content-length", &self.content.bytes.len().to_string());
        say("x-goog-stored-content-encoding", encoding.unwrap_or("identity"));
        say("x-goog-storage-class", "STANDARD");
        say("content-type", self.content_type());
        say("etag", &format!("\"{}\"", self.etag()));
        say("last-modified", &httpdate::fmt_http_date(self.created));
        say("accept-ranges", "bytes");
        if let Some(encoding) = encoding {
            say("content-encoding", encoding);
        }
        if let Some(control) = &described.cache_control {
            say("cache-control", control);
        }
        for (key, value) in described.metadata.iter().flatten() {
            let name = format!("x-goog-meta-{key}").parse::<HeaderName>();
            if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value)) {
                headers.append(name, value);
            }
        }
        headers
    }

    fn content_type(&self) -> &str {
        self.described.content_type.as_deref().unwrap_or("application/octet-stream")
    }

    fn etag(&self) -> String {
        BASE64_STANDARD.encode(self.generation.to_be_bytes())
    }
}

/// A time as the JSON API gives it.
pub(super) fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let milliseconds = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
    format!("{:.3}", Timestamp::from_millisecond(milliseconds).unwrap_or(Timestamp::MAX))
}
