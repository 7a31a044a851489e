//! What can be wrong with a configuration.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}: {cause}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// The file is no TOML, or a section is not one.
    #[error("the configuration{} is not valid TOML: {place}", named(.path.as_deref()))]
    Syntax {
        /// The file, if it is one.
        path: Option<PathBuf>,
        /// Line and column, the line itself, and what is wrong there.
        place: String,
    },
    /// Settings are wrong; all of them are here.
    #[error("the configuration has {} {}:{}", .0.len(), if .0.len() == 1 { "mistake" } else { "mistakes" }, lines(.0))]
    Mistakes(Vec<Mistake>),
}

/// One setting that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Section and name.
    pub key: String,
    /// What is written there.
    pub value: String,
    /// What to write instead.
    pub remedy: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, value, remedy } = self;
        if value.is_empty() { write!(f, "{key}: {remedy}") } else { write!(f, "{key} = {value}: {remedy}") }
    }
}

impl ConfigError {
    /// What the parser found wrong.
    pub(super) fn syntax(error: &toml::de::Error) -> Self {
        let said = error.to_string();
        let place = said.strip_prefix("TOML parse error at ").unwrap_or(&said).trim_end().to_owned();
        Self::Syntax { path: None, place }
    }

    /// The same, of a file.
    pub(super) fn in_file(mut self, file: Option<&Path>) -> Self {
        if let Self::Syntax { path, .. } = &mut self {
            *path = file.map(Path::to_owned);
        }
        self
    }
}

fn named(path: Option<&Path>) -> String {
    path.map_or_else(String::new, |path| format!(" {}", path.display()))
}

fn lines(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(|mistake| format!("\n  {mistake}")).collect()
}
