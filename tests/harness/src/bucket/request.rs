//! What a request asks for: paths of both APIs, parameters, preconditions.

use axum::http::{HeaderMap, Uri};
use percent_encoding::percent_decode_str;
use url::form_urlencoded;

use super::{object::Stored, refusal::Refusal};

/// Where an object is, or shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) bucket: String,
    pub(super) name: String,
}

/// What a path stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// What the server counts: no path of Cloud Storage's.
    Counters,
    Buckets,
    Bucket(String),
    /// How a bucket is laid out, of the same name.
    Layout(String),
    /// The objects of a bucket.
    Objects(String),
    Object(Named),
    /// Where an object is made of others.
    Compose(Named),
    /// Where objects of a bucket are written.
    Upload(String),
    /// An object by the XML API.
    Plain(Named),
}

impl Target {
    /// Reads a path as it was sent: slashes of an object's name are escaped in one API and not in the other.
    pub(super) fn of(path: &str) -> Option<Self> {
        let below = |starts: [&str; 2]| starts.into_iter().find_map(|start| path.strip_prefix(start));
        if path == "/_weightd/counters" {
            return Some(Self::Counters);
        }
        if let Some(rest) = below(["/upload/storage/v1/b/", "/resumable/upload/storage/v1/b/"]) {
            return rest.strip_suffix("/o").map(|bucket| Self::Upload(decoded(bucket)));
        }
        if let Some(rest) = below(["/storage/v1/", "/download/storage/v1/"]) {
            return Self::of_json(rest);
        }
        let (bucket, name) = path.strip_prefix('/')?.split_once('/')?;
        (!bucket.is_empty() && !name.is_empty()).then(|| Self::Plain(Named::decoded(bucket, name)))
    }

    fn of_json(path: &str) -> Option<Self> {
        if path == "b" {
            return Some(Self::Buckets);
        }
        let path = path.strip_prefix("b/")?;
        match path.split_once('/') {
            None => Some(Self::Bucket(decoded(path))),
            Some((bucket, "storageLayout")) => Some(Self::Layout(decoded(bucket))),
            Some((bucket, "o")) => Some(Self::Objects(decoded(bucket))),
            Some((bucket, rest)) => {
                let name = rest.strip_prefix("o/")?;
                // Slashes of the name itself are escaped.
                match name.strip_suffix("/compose") {
                    Some(name) => Some(Self::Compose(Named::decoded(bucket, name))),
                    None => Some(Self::Object(Named::decoded(bucket, name))),
                }
            }
        }
    }
}

impl Named {
    fn decoded(bucket: &str, name: &str) -> Self {
        Self { bucket: decoded(bucket), name: decoded(name) }
    }

    pub(super) fn missing(&self) -> Refusal {
        Refusal::NoObject(format!("{}/{}", self.bucket, self.name))
    }
}

fn decoded(part: &str) -> String {
    percent_decode_str(part).decode_utf8_lossy().into_owned()
}

/// The parameters of a request.
#[derive(Debug, Clone, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn of(uri: &Uri) -> Self {
        let pairs = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
        Self(pairs.into_owned().collect())
    }

    /// A parameter. One without a value is none: clients send `pageToken=`.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    pub(super) fn is_set(&self, name: &str) -> bool {
        self.get(name) == Some("true")
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<i64>, Refusal> {
        self.get(name).map(|value| number(name, value)).transpose()
    }
}

fn number(name: &str, value: &str) -> Result<i64, Refusal> {
    value.parse().map_err(|_| Refusal::invalid(format!("Invalid value for {name}: {value:?}")))
}

/// What must be so of an object for a request to be done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Conditions {
    generation: Match,
    metageneration: Match,
}

/// Of one number. That of an object which is not there is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Match {
    is: Option<i64>,
    is_not: Option<i64>,
}

impl Conditions {
    /// Those of the parameters, as in the JSON API, or of headers, as in the other.
    pub(super) fn of(query: &Query, headers: &HeaderMap) -> Result<Self, Refusal> {
        let wanted = |parameter: &str, name: &str| match query.number(parameter)? {
            Some(value) => Ok(Some(value)),
            None => {
                let header = headers.get(name).and_then(|value| value.to_str().ok());
                header.map(|value| number(name, value)).transpose()
            }
        };
        let generation = Match {
            is: wanted("ifGenerationMatch", "x-goog-if-generation-match")?,
            is_not: query.number("ifGenerationNotMatch")?,
        };
        let metageneration = Match {
            is: wanted("ifMetagenerationMatch", "x-goog-if-metageneration-match")?,
            is_not: query.number("ifMetagenerationNotMatch")?,
        };
        Ok(Self { generation, metageneration })
    }

    /// Whether an object may be read. Whoever wants it only if it is another knows this one.
    pub(super) fn allow_reading(&self, found: &Stored) -> Result<(), Refusal> {
        match self.check(Some(found)) {
            (false, _) => Err(Refusal::Precondition),
            (true, false) => Err(Refusal::NotModified),
            (true, true) => Ok(()),
        }
    }

    /// Whether what is there may be replaced or removed.
    pub(super) fn allow_writing(&self, found: Option<&Stored>) -> Result<(), Refusal> {
        if self.check(found) == (true, true) { Ok(()) } else { Err(Refusal::Precondition) }
    }

    /// Whether what shall match does, and what shall not does not.
    fn check(&self, found: Option<&Stored>) -> (bool, bool) {
        let numbers = found.map_or((0, 0), |found| (found.generation, Stored::METAGENERATION));
        let both = [(self.generation, numbers.0), (self.metageneration, numbers.1)];
        (
            both.iter().all(|(wanted, number)| wanted.is.is_none_or(|is| is == *number)),
            both.iter().all(|(wanted, number)| wanted.is_not.is_none_or(|is_not| is_not != *number)),
        )
    }
}
