//! Names of objects that are safe to become files.

use std::{fmt, path::Path, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize};

/// Longest file name in bytes that Linux file systems take.
const NAME_MAX: usize = 255;
/// Longest object name in bytes that Cloud Storage and S3 take.
const OBJECT_NAME_MAX: usize = 1024;

/// An object's name relative to its snapshot: parts joined by `/`, none empty, `.` or `..`, no control
/// characters, so that it can become a file below a directory and nowhere else.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ObjectPath(String);

/// A name that cannot safely become a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("object name {name:?} {why}: rename the object, or leave it out with --exclude")]
pub struct InvalidPath {
    /// The name as the origin gave it.
    pub name: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl ObjectPath {
    /// Takes a name as an origin lists it.
    ///
    /// # Errors
    /// [`InvalidPath`] when the name could leave its directory or cannot be a file name.
    pub fn new(name: impl Into<String>) -> Result<Self, InvalidPath> {
        let name = name.into();
        match objection(&name) {
            None => Ok(Self(name)),
            Some(why) => Err(InvalidPath { name, why }),
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last part.
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// The directory it is in, without a trailing `/`; empty at the top.
    pub fn directory(&self) -> &str {
        self.0.rsplit_once('/').map_or("", |(directory, _)| directory)
    }

    /// Whether it is named as a safetensors file.
    pub fn is_safetensors(&self) -> bool {
        self.0.ends_with(".safetensors")
    }

    /// Whether it is named as the index of a sharded safetensors model.
    pub fn is_safetensors_index(&self) -> bool {
        self.0.ends_with(".safetensors.index.json")
    }
}

fn objection(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        return Some("is empty");
    }
    if name.len() > OBJECT_NAME_MAX {
        return Some("is longer than 1,024 bytes");
    }
    if name.starts_with('/') {
        return Some("is an absolute path");
    }
    if name.contains(|c: char| c.is_control()) {
        return Some("has a control character");
    }
    name.split('/').find_map(|part| match part {
        "" => Some("has an empty part (`//`, or `/` at the end)"),
        "." | ".." => Some("has a `.` or `..` part"),
        part if part.len() > NAME_MAX => Some("has a part longer than 255 bytes"),
        _ => None,
    })
}

impl fmt::Display for ObjectPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ObjectPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl AsRef<str> for ObjectPath {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl AsRef<Path> for ObjectPath {
    fn as_ref(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl FromStr for ObjectPath {
    type Err = InvalidPath;

    fn from_str(name: &str) -> Result<Self, InvalidPath> {
        Self::new(name)
    }
}

impl<'de> Deserialize<'de> for ObjectPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_pass() {
        for name in
            ["config.json", "a/b/c.safetensors", "...", "a b", "ü/模型.safetensors", &"x/".repeat(511)]
        {
            let name = name.trim_end_matches('/');
            assert!(ObjectPath::new(name).is_ok(), "{name:?} was refused");
        }
    }

    #[test]
    fn no_name_leaves_its_directory() {
        bolero::check!().with_type::<String>().for_each(|name| {
            if let Ok(path) = ObjectPath::new(name.as_str()) {
                let parts: Vec<_> = Path::new(path.as_str()).components().collect();
                assert!(parts.iter().all(|part| matches!(part, std::path::Component::Normal(_))), "{name:?}");
            }
        });
    }

    #[test]
    fn names_that_could_escape_or_confuse_are_refused() {
        let long_part = "x".repeat(256);
        let long_name = "x/".repeat(513);
        for name in [
            "",
            "/etc/passwd",
            "../up",
            "a/../../b",
            "a/..",
            ".",
            "a//b",
            "a/",
            "a\0b",
            "a\nb",
            &long_part,
            &long_name,
        ] {
            assert!(ObjectPath::new(name).is_err(), "{name:?} was taken");
        }
    }
}
