//! Names of blobs: one object's bytes in the store, in one layout.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Digest, Object, SourceUri};

/// How a blob's bytes are placed in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Byte for byte the object.
    Original,
    /// The same safetensors tensors, placed for mapping: data begins on a 64 KiB boundary and tensors on
    /// 64 bytes. Files that are not safetensors stay as they are.
    #[default]
    Aligned,
}

impl Layout {
    /// The word used on the command line, in manifests and in file names.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Original => "original",
            Self::Aligned => "aligned",
        }
    }

    /// The layout an object gets when a snapshot is stored in this one: only safetensors can be aligned.
    #[must_use]
    pub fn for_object(self, object: &Object) -> Self {
        if object.path.is_safetensors() && object.size > 0 { self } else { Self::Original }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that names no layout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a layout: write aligned or original")]
pub struct UnknownLayout(String);

impl FromStr for Layout {
    type Err = UnknownLayout;

    fn from_str(text: &str) -> Result<Self, UnknownLayout> {
        match text {
            "original" => Ok(Self::Original),
            "aligned" => Ok(Self::Aligned),
            other => Err(UnknownLayout(other.to_owned())),
        }
    }
}

/// Identity of an object's bytes. Objects share an id only when they are the same version of the same object,
/// or when their origins publish the same SHA-256; anything weaker could let one bucket's owner choose bytes
/// that another bucket's readers get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BlobId(Digest);

impl BlobId {
    /// The id of an object of a source.
    pub fn of(source: &SourceUri, object: &Object) -> Self {
        let identity = match &object.checksums.sha256 {
            Some(sha256) => format!("weightd-blob-1\nsha256:{sha256}\n{}", object.size),
            None => format!(
                "weightd-blob-1\n{}\n{}\n{}",
                source.object_url(&object.path),
                object.version.identity(),
                object.size
            ),
        };
        Self(Digest::of(identity))
    }

    /// The digest it is.
    pub fn digest(&self) -> &Digest {
        &self.0
    }
}

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for BlobId {
    type Err = crate::InvalidDigest;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// One blob: whose bytes, placed how. Written `<id>.<layout>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BlobKey {
    /// Whose bytes.
    pub id: BlobId,
    /// Placed how.
    pub layout: Layout,
}

impl fmt::Display for BlobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.id, self.layout)
    }
}

impl FromStr for BlobKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (id, layout) = text.split_once('.').ok_or_else(|| format!("{text:?} is not <id>.<layout>"))?;
        Ok(Self {
            id: id.parse().map_err(|error: crate::InvalidDigest| error.to_string())?,
            layout: layout.parse().map_err(|error: UnknownLayout| error.to_string())?,
        })
    }
}
