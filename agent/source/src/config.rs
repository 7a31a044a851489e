//! What an operator decides about origins, as written, and checked together with the environment.

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use serde::Deserialize;
use url::Url;

const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const DEFAULT_HUB: &str = "https://huggingface.co";

/// The `[source]` table of the configuration file. What is absent comes from the environment, as the tools of
/// each cloud read it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Longest wait for a connection, in seconds; 10 when absent.
    pub connect_timeout_seconds: Option<u64>,
    /// Cloud Storage.
    pub gcs: GcsConfig,
    /// Amazon S3 and what speaks its protocol.
    pub s3: S3Config,
    /// Azure Blob Storage.
    pub azure: AzureConfig,
    /// The Hugging Face hub.
    pub hub: HubConfig,
}

/// Cloud Storage.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GcsConfig {
    /// Where the API is; else `STORAGE_EMULATOR_HOST`, else Google.
    pub endpoint: Option<String>,
    /// Read public buckets without credentials. An emulator from the environment is always read so.
    pub anonymous: Option<bool>,
    /// Project that pays for requests to requester-pays buckets.
    pub user_project: Option<String>,
}

/// Amazon S3. What neither this nor the environment says comes from the profile `AWS_PROFILE`, else `default`, of
/// Amazon's own tools.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct S3Config {
    /// Where the API is; else `AWS_ENDPOINT_URL`, else the profile's, else Amazon.
    pub endpoint: Option<String>,
    /// Region of the buckets; else `AWS_REGION`, else the profile's, else asked of Amazon for each bucket.
    pub region: Option<String>,
    /// Read public buckets without signing requests.
    pub anonymous: Option<bool>,
}

/// Azure Blob Storage.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AzureConfig {
    /// Storage account; else `AZURE_STORAGE_ACCOUNT_NAME`.
    pub account: Option<String>,
    /// Where the account is served; else Azure.
    pub endpoint: Option<String>,
    /// Use the Azurite emulator and its well-known account.
    pub emulator: Option<bool>,
    /// Read public containers without signing requests.
    pub anonymous: Option<bool>,
}

/// The Hugging Face hub.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HubConfig {
    /// Where the hub is; else `HF_ENDPOINT`, else huggingface.co.
    pub endpoint: Option<String>,
    /// File that holds the token; else `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HOME/token`.
    pub token_path: Option<PathBuf>,
}

/// Environment variables, read once. Their values may be secrets, so they are never shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// That of this process.
    pub fn of_process() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self(std::env::vars_os().filter_map(text).collect())
    }

    /// A variable that is set to something.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Variables whose names begin so, with their names in lower case.
    pub(crate) fn beginning(&self, prefix: &'static str) -> impl Iterator<Item = (String, &str)> {
        let begins = move |(name, _): &(&String, &String)| name.starts_with(prefix);
        self.0.iter().filter(begins).map(|(name, value)| (name.to_ascii_lowercase(), value.as_str()))
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(variables: I) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Checked configuration: what [`Origins`](crate::Origins) is made from.
#[derive(Debug, Clone)]
pub struct Settings {
    pub(crate) connect_timeout: Duration,
    pub(crate) gcs: GcsSettings,
    pub(crate) s3: S3Config,
    pub(crate) azure: AzureConfig,
    pub(crate) hub: HubSettings,
    pub(crate) environment: Environment,
}

#[derive(Debug, Clone)]
pub(crate) struct GcsSettings {
    pub(crate) endpoint: Option<Url>,
    pub(crate) anonymous: bool,
    pub(crate) user_project: Option<String>,
}

#[derive(Debug, Clone)]
pub(crate) struct HubSettings {
    pub(crate) endpoint: Url,
    pub(crate) token_path: Option<PathBuf>,
}

impl Config {
    /// Checks the configuration against the environment, and collects every mistake.
    ///
    /// # Errors
    /// One sentence per mistake, each naming the setting.
    pub fn check(&self, environment: &Environment) -> Result<Settings, Vec<String>> {
        let mut mistakes = Mistakes(Vec::new());
        let connect_timeout = match self.connect_timeout_seconds {
            None => DEFAULT_CONNECT_TIMEOUT,
            Some(seconds @ 1..=600) => Duration::from_secs(seconds),
            Some(seconds) => {
                mistakes.add("source.connect_timeout_seconds", &format!("is {seconds}; write 1 to 600"));
                DEFAULT_CONNECT_TIMEOUT
            }
        };
        let gcs = self.gcs.check(environment, &mut mistakes);
        mistakes.url("source.s3.endpoint", self.s3.endpoint.as_deref());
        mistakes.url("source.azure.endpoint", self.azure.endpoint.as_deref());
        let hub = self.hub.check(environment, &mut mistakes);
        match hub {
            Some(hub) if mistakes.0.is_empty() => Ok(Settings {
                connect_timeout,
                gcs,
                s3: self.s3.clone(),
                azure: self.azure.clone(),
                hub,
                environment: environment.clone(),
            }),
            _ => Err(mistakes.0),
        }
    }
}

impl GcsConfig {
    fn check(&self, environment: &Environment, mistakes: &mut Mistakes) -> GcsSettings {
        let configured = mistakes.url("source.gcs.endpoint", self.endpoint.as_deref());
        // The other clients of Cloud Storage take a bare host here, and mean HTTP by it.
        let emulator = environment
            .get("STORAGE_EMULATOR_HOST")
            .map(|host| if host.contains("://") { host.to_owned() } else { format!("http://{host}") });
        let emulator = mistakes.url("STORAGE_EMULATOR_HOST", emulator.as_deref());
        let is_emulator = configured.is_none() && emulator.is_some();
        GcsSettings {
            endpoint: configured.or(emulator),
            anonymous: self.anonymous.unwrap_or(is_emulator),
            user_project: self.user_project.clone(),
        }
    }
}

impl HubConfig {
    fn check(&self, environment: &Environment, mistakes: &mut Mistakes) -> Option<HubSettings> {
        let (name, endpoint) = match &self.endpoint {
            Some(endpoint) => ("source.hub.endpoint", endpoint.as_str()),
            None => ("HF_ENDPOINT", environment.get("HF_ENDPOINT").unwrap_or(DEFAULT_HUB)),
        };
        let endpoint = mistakes.url(name, Some(endpoint))?;
        Some(HubSettings { endpoint, token_path: self.token_path.clone() })
    }
}

struct Mistakes(Vec<String>);

impl Mistakes {
    fn add(&mut self, setting: &str, what: &str) {
        self.0.push(format!("{setting} {what}"));
    }

    fn url(&mut self, setting: &str, text: Option<&str>) -> Option<Url> {
        let text = text?;
        let url = Url::parse(text).ok().filter(|url| {
            matches!(url.scheme(), "http" | "https") && url.has_host() && url.query().is_none()
        });
        if url.is_none() {
            self.add(setting, &format!("is {text:?}; write http:// or https:// and a host"));
        }
        url
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(config: &Config, environment: &[(&str, &str)]) -> Result<Settings, Vec<String>> {
        config.check(&environment.iter().copied().collect())
    }

    #[test]
    fn nothing_written_means_the_real_origins() {
        let settings = check(&Config::default(), &[]).unwrap();
        assert_eq!(settings.gcs.endpoint, None);
        assert!(!settings.gcs.anonymous);
        assert_eq!(settings.hub.endpoint.as_str(), "https://huggingface.co/");
    }

    #[test]
    fn an_emulator_is_read_without_credentials_with_or_without_its_scheme() {
        for host in ["127.0.0.1:4443", "http://127.0.0.1:4443"] {
            let settings = check(&Config::default(), &[("STORAGE_EMULATOR_HOST", host)]).unwrap();
            assert_eq!(settings.gcs.endpoint.unwrap().as_str(), "http://127.0.0.1:4443/");
            assert!(settings.gcs.anonymous);
        }
        let endpoint = Some("https://private.googleapis.com".to_owned());
        let gcs = GcsConfig { endpoint, ..GcsConfig::default() };
        let config = Config { gcs, ..Config::default() };
        assert!(!check(&config, &[("STORAGE_EMULATOR_HOST", "h")]).unwrap().gcs.anonymous);
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let config: Config = serde_json::from_str(
            r#"{"connect_timeout_seconds": 0, "gcs": {"endpoint": "nowhere"}, "hub": {"endpoint": "ftp://h"}}"#,
        )
        .unwrap();
        let mistakes = check(&config, &[]).unwrap_err();
        assert_eq!(mistakes.len(), 3, "{mistakes:?}");
        assert!(mistakes[1].contains("source.gcs.endpoint is \"nowhere\""), "{mistakes:?}");
        assert!(serde_json::from_str::<Config>(r#"{"gcs": {"anonymus": true}}"#).is_err());
    }

    #[test]
    fn values_of_the_environment_are_not_shown() {
        let settings = check(&Config::default(), &[("AWS_SECRET_ACCESS_KEY", "hunter2")]).unwrap();
        assert!(!format!("{settings:?}").contains("hunter2"));
    }
}
