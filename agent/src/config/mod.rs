//! The agent's configuration.
//!
//! A TOML file and flags become a checked [`Config`] in one step that touches neither disk nor network and
//! collects every mistake, so that an operator mends all of them at once and an agent with a wrong file does
//! nothing at all.

mod access;
mod check;
mod error;
mod fields;
mod raw;
mod read;
mod source;
#[cfg(test)]
mod tests;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use weightd_daemon::LogConfig;
use weightd_source::Environment;

pub use error::{ConfigError, Mistake};

use crate::TierConfig;

/// Everything an operator decides.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where clients connect.
    pub socket: PathBuf,
    /// Where metrics and health are served; `None` for nowhere.
    pub metrics_address: Option<SocketAddr>,
    /// What is logged, and how.
    pub log: LogConfig,
    /// The store room's.
    pub store: weightd_store::Config,
    /// The fetch room's.
    pub fetch: weightd_fetch::Config,
    /// The access room's.
    pub access: weightd_access::Config,
    /// The expose room's.
    pub expose: weightd_expose::Config,
    /// The source room's.
    pub source: weightd_source::Settings,
    /// Read-only tiers.
    pub tiers: TierConfig,
}

/// Flags, which go before the file; each as it was typed.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `store.directory`
    pub store: Option<PathBuf>,
    /// `agent.socket`
    pub socket: Option<PathBuf>,
    /// `agent.metrics_address`
    pub metrics_address: Option<String>,
    /// `agent.log_format`
    pub log_format: Option<String>,
    /// `agent.log`
    pub log: Option<String>,
    /// `anonymous` of every kind of source that has it.
    pub anonymous: bool,
    /// `source.gcs.user_project`
    pub user_project: Option<String>,
}

impl Config {
    /// Reads the file, if one is named, and checks it together with the flags and the process's environment.
    ///
    /// # Errors
    /// [`ConfigError`] with every mistake.
    pub fn load(file: Option<&Path>, overrides: &Overrides) -> Result<Self, ConfigError> {
        let text = match file {
            None => String::new(),
            Some(path) => std::fs::read_to_string(path)
                .map_err(|cause| ConfigError::Unreadable { path: path.to_owned(), cause })?,
        };
        Self::parse(&text, &overrides.absolute(), &Environment::of_process())
            .map_err(|error| error.in_file(file))
    }

    /// Checks a file's text together with the flags and an environment.
    ///
    /// # Errors
    /// [`ConfigError`] with every mistake.
    pub fn parse(text: &str, overrides: &Overrides, environment: &Environment) -> Result<Self, ConfigError> {
        let (raw, unknown) = raw::parse(text)?;
        check::check(raw.with(overrides), unknown, environment).map_err(ConfigError::Mistakes)
    }
}

impl Overrides {
    /// Typed paths are relative to where they were typed.
    fn absolute(&self) -> Self {
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let (store, socket) = (self.store.as_ref().map(absolute), self.socket.as_ref().map(absolute));
        Self { store, socket, ..self.clone() }
    }
}
