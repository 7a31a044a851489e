//! A profile of Amazon's own tools, from `~/.aws/credentials` and `~/.aws/config`: its keys, region and endpoint.
//!
//! Only keys that are written there are read. Identities that must be fetched first (single sign-on, roles,
//! programs) are refused with the way to get keys from them.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use configparser::ini::Ini;
use object_store::{aws::AwsCredential, client::CredentialProvider};
use tokio::time::Instant;

use crate::{SourceError, config::Environment};

/// How long keys are used before the files are looked at again: tools renew temporary ones in place.
const KNOWN_FOR: Duration = Duration::from_secs(60);

/// Settings that mean an identity other than keys.
const FETCHED: [&str; 5] =
    ["sso_session", "sso_start_url", "credential_process", "login_session", "web_identity_token_file"];

type Settings = BTreeMap<String, String>;

/// What the files say of one profile.
#[derive(Default)]
pub(super) struct Profile {
    name: String,
    is_asked_for: bool,
    /// Of the credentials file, whose settings go first, and of the configuration file.
    found: [Option<Settings>; 2],
    /// The files, and what hindered their reading.
    files: Vec<String>,
}

impl Profile {
    /// Reads the profile that `AWS_PROFILE` names, else `default`.
    ///
    /// # Errors
    /// When a file is not what it should be. One that cannot be read is as one that is not there.
    pub(super) async fn read(environment: &Environment) -> Result<Self, SourceError> {
        let asked = environment.get("AWS_PROFILE");
        let name = asked.unwrap_or("default").to_owned();
        let mut profile = Self { name, is_asked_for: asked.is_some(), ..Self::default() };
        let places =
            [("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials"), ("AWS_CONFIG_FILE", ".aws/config")];
        for (found, (variable, below)) in [0, 1].into_iter().zip(places) {
            let Some(path) = place(environment, variable, below) else { continue };
            match tokio::fs::read_to_string(&path).await {
                Ok(text) => profile.found[found] = section(&text, &profile.name, found == 1, &path)?,
                Err(error) => profile.files.push(format!("{} ({error})", path.display())),
            }
        }
        Ok(profile)
    }

    /// A setting that the profile has.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.found.iter().flatten().find_map(|settings| settings.get(name)).map(String::as_str)
    }

    /// Its keys; nothing when it has none and nobody asked for it.
    ///
    /// # Errors
    /// When it does not exist although it was asked for, or has an identity that is no keys. `what` is what the
    /// keys are for.
    pub(super) fn keys(&self, what: &str) -> Result<Option<AwsCredential>, SourceError> {
        let keys = self.found.iter().flatten().find_map(keys);
        // A role goes before keys, which are then only for getting it.
        let fetched = match self.get("role_arn") {
            Some(_) => Some("role_arn"),
            None if keys.is_none() => FETCHED.into_iter().find(|setting| self.get(setting).is_some()),
            None => None,
        };
        match fetched {
            Some(setting) => Err(self.refused(what, setting)),
            None if self.is_asked_for && self.found == [None, None] => Err(self.missing(what)),
            None => Ok(keys),
        }
    }

    fn refused(&self, what: &str, setting: &str) -> SourceError {
        let name = &self.name;
        let why = format!(
            "the profile {name:?} has {setting}, which weightd does not follow: start weightd after \
             `eval \"$(aws configure export-credentials --profile {name} --format env)\"`, or give the pod a role"
        );
        SourceError::Configuration { what: what.to_owned(), why }
    }

    fn missing(&self, what: &str) -> SourceError {
        let name = &self.name;
        let unread = match self.files.as_slice() {
            [] => String::new(),
            files => format!("; not read: {}", files.join(", ")),
        };
        let why = format!(
            "AWS_PROFILE is {name:?}, and no file has such a profile: run `aws configure --profile {name}`, or \
             unset AWS_PROFILE{unread}"
        );
        SourceError::Configuration { what: what.to_owned(), why }
    }
}

fn place(environment: &Environment, variable: &str, below: &str) -> Option<PathBuf> {
    let home = || Some(Path::new(environment.get("HOME")?).join(below));
    environment.get(variable).map(PathBuf::from).or_else(home)
}

/// The settings of a profile in one file.
fn section(text: &str, name: &str, is_config: bool, path: &Path) -> Result<Option<Settings>, SourceError> {
    let mut rules = Ini::new_cs().defaults();
    rules.delimiters = vec!['='];
    rules.multiline = true;
    // A secret may hold what begins a comment; what follows a space is taken off below.
    rules.enable_inline_comments = false;
    let failed = |why: String| SourceError::Configuration { what: path.display().to_string(), why };
    let sections = Ini::new_from_defaults(rules).read(text.to_owned()).map_err(failed)?;
    let mut found = None;
    // In the configuration file all but the default are marked, and the default may be; the mark goes first.
    let is_it = |title: &str| match title.split_once(char::is_whitespace) {
        Some(("profile", marked)) => is_config && marked.trim().trim_matches(['"', '\'']) == name,
        _ => title == name && (!is_config || name == "default"),
    };
    let mut titles: Vec<&String> = sections.keys().filter(|title| is_it(title)).collect();
    titles.sort();
    for (setting, value) in titles.into_iter().flat_map(|title| &sections[title]) {
        let value = value.as_deref().map(without_comment).filter(|value| !value.is_empty());
        let settings: &mut Settings = found.get_or_insert_default();
        settings.extend(value.map(|value| (setting.to_ascii_lowercase(), value.to_owned())));
    }
    Ok(found)
}

fn without_comment(value: &str) -> &str {
    let begins = [" #", " ;", "\t#", "\t;"];
    let end = begins.iter().filter_map(|begin| value.find(begin)).min();
    value[..end.unwrap_or(value.len())].trim()
}

/// Keys that stand in one file: those of two are never mixed.
fn keys(settings: &Settings) -> Option<AwsCredential> {
    Some(AwsCredential {
        key_id: settings.get("aws_access_key_id")?.clone(),
        secret_key: settings.get("aws_secret_access_key")?.clone(),
        token: settings.get("aws_session_token").cloned(),
    })
}

/// Keys of a profile, as they are now.
pub(super) struct ProfileKeys {
    environment: Environment,
    known: Mutex<(Instant, Arc<AwsCredential>)>,
}

impl ProfileKeys {
    pub(super) fn new(environment: &Environment, keys: AwsCredential) -> Self {
        Self { environment: environment.clone(), known: Mutex::new((Instant::now(), Arc::new(keys))) }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, (Instant, Arc<AwsCredential>)> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for ProfileKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProfileKeys").finish_non_exhaustive()
    }
}

#[async_trait]
impl CredentialProvider for ProfileKeys {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let (since, keys) = self.known().clone();
        if since.elapsed() < KNOWN_FOR {
            return Ok(keys);
        }
        // A file that is just being written may be anything: the keys that are known are better than none.
        let read = Profile::read(&self.environment).await.and_then(|profile| profile.keys(""));
        let keys = read.ok().flatten().map_or(keys, Arc::new);
        *self.known() = (Instant::now(), Arc::clone(&keys));
        Ok(keys)
    }
}

#[cfg(test)]
mod tests;
