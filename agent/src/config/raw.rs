//! The configuration file as it is written, before anything is checked.
//!
//! Every setting is kept as whatever TOML value stands there, so that a wrong type is one mistake among others
//! and does not hide the rest.

use serde::Deserialize;
use toml::Value;

use super::{ConfigError, Mistake, Overrides, fields::fields};

/// A setting as it is written.
pub(super) type Setting = Option<Value>;

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Raw {
    pub(super) agent: RawAgent,
    pub(super) store: RawStore,
    pub(super) fetch: RawFetch,
    pub(super) volumes: RawVolumes,
    pub(super) handoff: RawHandoff,
    pub(super) access: RawAccess,
    pub(super) tiers: RawTiers,
    /// `[source]`: the source room knows what may stand here.
    pub(super) source: toml::Table,
}

/// `[agent]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawAgent {
    pub(super) socket: Setting,
    pub(super) metrics_address: Setting,
    pub(super) log: Setting,
    pub(super) log_format: Setting,
}

/// `[store]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawStore {
    pub(super) directory: Setting,
    pub(super) quota: Setting,
    pub(super) high_watermark: Setting,
    pub(super) low_watermark: Setting,
    pub(super) floor: Setting,
    pub(super) engine: Setting,
    pub(super) buffers: Setting,
    pub(super) partials_keep: Setting,
    pub(super) checkpoint_interval: Setting,
    pub(super) scrub_rate: Setting,
}

/// `[fetch]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawFetch {
    pub(super) min_requests: Setting,
    pub(super) max_requests: Setting,
    pub(super) range: Setting,
    pub(super) bandwidth: Setting,
    pub(super) stall: Setting,
    pub(super) give_up: Setting,
    pub(super) attempts: Setting,
    pub(super) refetches: Setting,
}

/// `[volumes]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawVolumes {
    pub(super) directory: Setting,
    pub(super) keeper: Setting,
    pub(super) read_timeout: Setting,
    pub(super) agent_timeout: Setting,
    pub(super) read_ahead: Setting,
    pub(super) buffers: Setting,
    pub(super) passthrough: Setting,
    pub(super) warm_up: Setting,
    pub(super) warm_up_floor: Setting,
}

/// `[handoff]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawHandoff {
    pub(super) directory: Setting,
    pub(super) resident_limit: Setting,
    pub(super) linger: Setting,
    pub(super) lock_limit: Setting,
    pub(super) leases: Setting,
    pub(super) huge_pages: Setting,
}

/// `[access]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawAccess {
    pub(super) identity: Setting,
    pub(super) sts_endpoint: Setting,
    pub(super) audience: Setting,
    pub(super) provider: Setting,
    pub(super) files: Setting,
    pub(super) web: Setting,
    pub(super) pods_may_pin: Setting,
    pub(super) kubelet_directory: Setting,
    pub(super) answers_keep: Setting,
}

/// `[tiers]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawTiers {
    pub(super) directories: Setting,
    pub(super) ask_origin: Setting,
}

/// Reads the file, and collects the keys that nobody knows.
pub(super) fn parse(text: &str) -> Result<(Raw, Vec<Mistake>), ConfigError> {
    let syntax = |error: toml::de::Error| ConfigError::syntax(&error);
    let table = toml::Deserializer::parse(text).map_err(syntax)?;
    let mut unknown = Vec::new();
    let raw = serde_ignored::deserialize(table, |path| unknown.push(unknown_key(&path.to_string())));
    Ok((raw.map_err(syntax)?, unknown))
}

fn unknown_key(key: &str) -> Mistake {
    let (section, known) = match key.split_once('.') {
        Some(("agent", _)) => ("[agent]", fields::<RawAgent>()),
        Some(("store", _)) => ("[store]", fields::<RawStore>()),
        Some(("fetch", _)) => ("[fetch]", fields::<RawFetch>()),
        Some(("volumes", _)) => ("[volumes]", fields::<RawVolumes>()),
        Some(("handoff", _)) => ("[handoff]", fields::<RawHandoff>()),
        Some(("access", _)) => ("[access]", fields::<RawAccess>()),
        Some(("tiers", _)) => ("[tiers]", fields::<RawTiers>()),
        Some(_) | None => ("the file", fields::<Raw>()),
    };
    let remedy = format!("is not known; {section} has {}", known.join(", "));
    Mistake { key: key.to_owned(), value: String::new(), remedy }
}

impl Raw {
    /// Flags go before the file.
    pub(super) fn with(mut self, overrides: &Overrides) -> Self {
        let path = |path: &std::path::PathBuf| path.to_string_lossy().into_owned();
        put(&mut self.store.directory, overrides.store.as_ref().map(path));
        put(&mut self.agent.socket, overrides.socket.as_ref().map(path));
        put(&mut self.agent.metrics_address, overrides.metrics_address.clone());
        put(&mut self.agent.log_format, overrides.log_format.clone());
        put(&mut self.agent.log, overrides.log.clone());
        self.source_flags(overrides);
        self
    }

    fn source_flags(&mut self, overrides: &Overrides) {
        if overrides.anonymous {
            for kind in ["gcs", "s3", "azure"] {
                self.put_source(kind, "anonymous", Value::Boolean(true));
            }
        }
        if let Some(project) = &overrides.user_project {
            self.put_source("gcs", "user_project", Value::String(project.clone()));
        }
    }

    /// A section that is no section stays as it is, to be refused as such.
    fn put_source(&mut self, kind: &str, key: &str, value: Value) {
        let section = self.source.entry(kind).or_insert_with(|| Value::Table(toml::Table::new()));
        if let Value::Table(section) = section {
            section.insert(key.to_owned(), value);
        }
    }
}

fn put(setting: &mut Setting, flag: Option<String>) {
    if let Some(text) = flag {
        *setting = Some(Value::String(text));
    }
}
