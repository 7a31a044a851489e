//! Where weights come from, as a user writes it.

use std::{fmt, str::FromStr};

use percent_encoding::percent_decode_str;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ObjectPath;

/// Kind of origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scheme {
    /// `gs://bucket/prefix`
    Gs,
    /// `s3://bucket/prefix`
    S3,
    /// `az://container/prefix`
    Az,
    /// `http://host/directory`
    Http,
    /// `https://host/directory`
    Https,
    /// `hf://org/name@revision`
    Hf,
    /// `file:///directory`
    File,
    /// `memory://name/prefix`: held by the process itself, for tests and embedding.
    Memory,
}

impl Scheme {
    /// All schemes, in the order in which messages list them.
    pub const ALL: [Self; 8] =
        [Self::Gs, Self::S3, Self::Az, Self::Http, Self::Https, Self::Hf, Self::File, Self::Memory];

    /// The word before `://`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gs => "gs",
            Self::S3 => "s3",
            Self::Az => "az",
            Self::Http => "http",
            Self::Https => "https",
            Self::Hf => "hf",
            Self::File => "file",
            Self::Memory => "memory",
        }
    }
}

/// Where weights come from: `gs://bucket/prefix`, `hf://org/name@revision`, `file:///directory`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceUri {
    scheme: Scheme,
    authority: String,
    prefix: String,
    revision: Option<String>,
}

/// A text that names no source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{uri:?} is not a source: {why}")]
pub struct InvalidUri {
    /// The text; credentials in it are not repeated.
    pub uri: String,
    /// What is wrong, and what to write instead.
    pub why: String,
}

impl SourceUri {
    /// Kind of origin.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Bucket, container, host with port, or `org/name`; empty for files.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// What object names begin with, without `/` at either end; empty for all of a bucket.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The revision asked for, of sources that have revisions.
    pub fn revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }

    /// The source without its revision: what object names are relative to.
    pub fn root(&self) -> String {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        format!("{}://{}{slash}{}", self.scheme.as_str(), self.authority, self.prefix)
    }

    /// Full name of one object, the same whichever prefix it was listed under.
    pub fn object_url(&self, path: &ObjectPath) -> String {
        format!("{}/{path}", self.root())
    }

    /// The origin's own key of one object: prefix and path.
    pub fn object_key(&self, path: &ObjectPath) -> String {
        if self.prefix.is_empty() { path.to_string() } else { format!("{}/{path}", self.prefix) }
    }
}

impl FromStr for SourceUri {
    type Err = InvalidUri;

    fn from_str(text: &str) -> Result<Self, InvalidUri> {
        parse(text).map_err(|why| InvalidUri { uri: without_credentials(text), why })
    }
}

fn parse(text: &str) -> Result<SourceUri, String> {
    let known =
        || Scheme::ALL.iter().take(7).map(|s| format!("{}://", s.as_str())).collect::<Vec<_>>().join(", ");
    if text.chars().any(char::is_control) {
        return Err("it has a control character".to_owned());
    }
    let (scheme, rest) =
        text.split_once("://").ok_or_else(|| format!("it must begin with one of {}", known()))?;
    let scheme = Scheme::ALL
        .into_iter()
        .find(|s| s.as_str() == scheme)
        .ok_or_else(|| format!("{scheme}:// is not known; known are {}", known()))?;
    let uri = match scheme {
        Scheme::Hf => parse_hub(rest)?,
        Scheme::File => parse_file(rest)?,
        Scheme::Http | Scheme::Https => parse_web(scheme, rest)?,
        Scheme::Gs | Scheme::S3 | Scheme::Az | Scheme::Memory => {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            SourceUri::checked(scheme, bucket, prefix, None)?
        }
    };
    if uri.authority.is_empty() && scheme != Scheme::File {
        return Err(format!("a name is missing after {}://", scheme.as_str()));
    }
    Ok(uri)
}

impl SourceUri {
    fn checked(
        scheme: Scheme,
        authority: &str,
        prefix: &str,
        revision: Option<&str>,
    ) -> Result<Self, String> {
        let prefix = prefix.trim_end_matches('/');
        if !prefix.is_empty() {
            ObjectPath::new(prefix).map_err(|error| format!("its prefix {}", error.why))?;
        }
        let name_ok = |c: char| c.is_ascii_alphanumeric() || "-_./:[]".contains(c);
        if !authority.chars().all(name_ok) || authority.split('/').any(|part| part == ".." || part == ".") {
            return Err(format!("{authority:?} cannot be a bucket, host or repository name"));
        }
        Ok(Self {
            scheme,
            authority: authority.to_owned(),
            prefix: prefix.to_owned(),
            revision: revision.map(str::to_owned),
        })
    }
}

/// `org/name`, `org/name@revision`, `org/name@revision/directory`, `org/name/directory`.
fn parse_hub(rest: &str) -> Result<SourceUri, String> {
    let shape = || "write hf://org/name or hf://org/name@revision".to_owned();
    let (repository, after) = match rest.split_once('@') {
        Some((repository, after)) => (repository.to_owned(), Some(after)),
        None => (rest.to_owned(), None),
    };
    let mut parts = repository.trim_end_matches('/').splitn(3, '/');
    let (org, name) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let directory = parts.next().unwrap_or_default();
    if org.is_empty() || name.is_empty() {
        return Err(shape());
    }
    let (revision, prefix) = match after {
        None => (None, directory),
        Some(_) if !directory.is_empty() => return Err(shape()),
        // Revisions may hold `/` (`refs/pr/1`), written %2F so that it cannot be taken for a directory.
        Some(after) => {
            let (revision, prefix) = after.split_once('/').unwrap_or((after, ""));
            if revision.is_empty() {
                return Err("the revision after @ is empty".to_owned());
            }
            let revision = percent_decode_str(revision).decode_utf8_lossy().into_owned();
            if revision.contains(char::is_control) {
                return Err("the revision after @ has a control character".to_owned());
            }
            (Some(revision), prefix)
        }
    };
    SourceUri::checked(Scheme::Hf, &format!("{org}/{name}"), prefix, revision.as_deref())
}

fn parse_file(rest: &str) -> Result<SourceUri, String> {
    let Some(path) = rest.strip_prefix('/') else {
        return Err("write file:// and an absolute path: file:///models/llama".to_owned());
    };
    SourceUri::checked(Scheme::File, "", path, None)
}

fn parse_web(scheme: Scheme, rest: &str) -> Result<SourceUri, String> {
    if rest.contains(['?', '#']) {
        return Err(
            "queries and fragments are not supported; signed URLs expire while weights load".to_owned()
        );
    }
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if host.contains('@') {
        return Err("credentials do not belong in a URI; use the agent's configuration".to_owned());
    }
    let path = percent_decode_str(path).decode_utf8().map_err(|_| "its path is not UTF-8".to_owned())?;
    SourceUri::checked(scheme, &host.to_ascii_lowercase(), &path, None)
}

/// The text with anything between `://` and `@` of a web address hidden.
fn without_credentials(text: &str) -> String {
    match (text.split_once("://"), text.rsplit_once('@')) {
        (Some((scheme @ ("http" | "https"), _)), Some((_, host))) => format!("{scheme}://…@{host}"),
        _ => text.to_owned(),
    }
}

impl fmt::Display for SourceUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.as_str(), self.authority)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{}", revision.replace('%', "%25").replace('/', "%2F"))?;
        }
        if !self.prefix.is_empty() || self.scheme == Scheme::File {
            f.write_str("/")?;
        }
        match self.scheme {
            // Else it would not be read as the path.
            Scheme::Http | Scheme::Https => {
                f.write_str(&self.prefix.replace('%', "%25").replace('?', "%3F").replace('#', "%23"))
            }
            _ => f.write_str(&self.prefix),
        }
    }
}

impl Serialize for SourceUri {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SourceUri {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_read_back_as_written() {
        for text in [
            "gs://bucket",
            "gs://bucket/models/llama",
            "s3://bucket/a",
            "az://container/a",
            "https://host:8443/models",
            "https://host/what%3F/half%25/tag%23",
            "file:///half%25/tag#1/what?",
            "gs://bucket/tag#1/what?/%3F",
            "hf://org/name",
            "hf://org/name@v1.0",
            "hf://org/name@refs%2Fpr%2F1/onnx",
            "hf://org/name/sub",
            "file:///models/llama",
            "memory://m/x",
        ] {
            let uri: SourceUri = text.parse().unwrap();
            assert_eq!(uri.to_string(), text);
            assert_eq!(uri.to_string().parse(), Ok(uri));
        }
        assert_eq!("gs://bucket/models/".parse::<SourceUri>().unwrap().to_string(), "gs://bucket/models");
        assert_eq!("hf://o/n@refs%2Fpr%2F1".parse::<SourceUri>().unwrap().revision(), Some("refs/pr/1"));
    }

    #[test]
    fn an_object_has_one_name_whatever_prefix_lists_it() {
        let name = |uri: &str, path: &str| {
            uri.parse::<SourceUri>().unwrap().object_url(&ObjectPath::new(path).unwrap())
        };
        assert_eq!(name("gs://b/m", "x/y"), name("gs://b/m/x", "y"));
        assert_eq!(name("hf://o/n@main", "y"), name("hf://o/n@abc", "y"));
        assert_eq!(name("file:///m", "y"), "file:///m/y");
    }

    #[test]
    fn any_text_is_refused_or_reads_back() {
        // Text at random has hardly any of what means something.
        const PARTS: [&str; 16] =
            ["%3F", "%23", "%25", "%2F", "%40", "%0A", "%FF", "%", "?", "#", "/", "@", ":", "..", "a", "ü "];
        bolero::check!().with_type::<(u8, String, Vec<u8>)>().for_each(|(scheme, rest, parts)| {
            let scheme = Scheme::ALL[usize::from(*scheme) % Scheme::ALL.len()].as_str();
            let parts: String = parts.iter().map(|part| PARTS[usize::from(*part) % PARTS.len()]).collect();
            for text in [
                rest.clone(),
                format!("{scheme}://{rest}"),
                format!("{scheme}://a/b{rest}"),
                format!("{scheme}://a/b{parts}"),
            ] {
                if let Ok(uri) = text.parse::<SourceUri>() {
                    assert_eq!(uri.to_string().parse(), Ok(uri), "{text:?}");
                }
            }
        });
    }

    #[test]
    fn what_is_no_source_says_what_to_write() {
        for (text, hint) in [
            ("models", "begin with one of gs://"),
            ("ftp://host/x", "ftp:// is not known"),
            ("gs://", "name is missing"),
            ("gs:///x", "name is missing"),
            ("gs://b/../x", "`..`"),
            ("gs://b//x", "absolute"),
            ("gs://b/x//y", "empty part"),
            ("gs://b/\nx", "control character"),
            ("hf://name", "hf://org/name"),
            ("hf://o/n@", "revision"),
            ("hf://o/n@a%0Ab", "control character"),
            ("file://models", "absolute path"),
            ("https://h/x?sig=1", "signed URLs"),
        ] {
            let error = text.parse::<SourceUri>().unwrap_err().to_string();
            assert!(error.contains(hint), "{text:?}: {error}");
        }
        let error = "https://me:secret@host/x".parse::<SourceUri>().unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}
