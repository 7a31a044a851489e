//! What a volume's attributes ask for. Whoever may write a pod spec writes them: nothing in them is believed.
//!
//! The same keys are a volume's `volumeAttributes` and a storage class's `parameters`.

use std::collections::HashMap;

use weightd_proto::v1;

/// Keys that kubelet and the provisioner add, which say for whom a volume is.
pub(crate) const KUBERNETES: &str = "csi.storage.k8s.io/";
/// What the provisioner adds to the attributes of volumes that it made.
const PROVISIONER: &str = "storage.kubernetes.io/csiProvisionerIdentity";

const KNOWN: [&str; 6] = ["source", "layout", "wait", "pin", "warmUp", "resident"];
const MAX_SOURCE_BYTES: usize = 2048;
/// How much of a text that is wrong is repeated.
const MAX_SHOWN: usize = 200;

/// When a volume is given to its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// As soon as its files are there; their bytes come while they are read.
    Started,
    /// When every byte is here and checked.
    Ready,
}

/// What a volume is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) source: String,
    pub(crate) layout: v1::Layout,
    pub(crate) wait: Wait,
    pub(crate) pin: bool,
    pub(crate) warm_up: bool,
    pub(crate) resident: bool,
}

/// Why attributes are refused. Texts in it are shortened, and credentials not repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidAttribute {
    #[error(
        "the volume attribute \"source\" is missing: write where the weights come from, such as gs://bucket/model"
    )]
    NoSource,
    #[error(
        "the volume attribute {key:?} is not known: known are source, layout, wait, pin, warmUp and resident"
    )]
    Unknown { key: String },
    #[error("the volume attribute {key:?} cannot be {value:?}: write {choices}")]
    Value { key: &'static str, value: String, choices: &'static str },
    #[error("the source {source_text:?} is refused: {why}")]
    Source { source_text: String, why: &'static str },
}

impl Attributes {
    /// Reads a volume's attributes or a storage class's parameters.
    pub(crate) fn parse(given: &HashMap<String, String>) -> Result<Self, InvalidAttribute> {
        let is_known = |key: &str| KNOWN.contains(&key) || key.starts_with(KUBERNETES) || key == PROVISIONER;
        // The first in order, so that the same mistake has the same message.
        if let Some(key) = given.keys().filter(|key| !is_known(key)).min() {
            return Err(InvalidAttribute::Unknown { key: shortened(key) });
        }
        let source = given.get("source").ok_or(InvalidAttribute::NoSource)?;
        check_source(source)?;
        let wait = [("started", Wait::Started), ("ready", Wait::Ready)];
        let layout = [("aligned", v1::Layout::Aligned), ("original", v1::Layout::Original)];
        let truth = [("false", false), ("true", true)];
        Ok(Self {
            source: source.clone(),
            layout: one_of(given, "layout", layout, "aligned or original")?,
            wait: one_of(given, "wait", wait, "started or ready")?,
            pin: one_of(given, "pin", truth, "\"true\" or \"false\"")?,
            warm_up: one_of(given, "warmUp", truth, "\"true\" or \"false\"")?,
            resident: one_of(given, "resident", truth, "\"true\" or \"false\"")?,
        })
    }
}

/// The value of a key, the first of its choices if it is not there.
fn one_of<T: Copy>(
    given: &HashMap<String, String>,
    key: &'static str,
    values: [(&str, T); 2],
    choices: &'static str,
) -> Result<T, InvalidAttribute> {
    let Some(text) = given.get(key) else { return Ok(values[0].1) };
    let found = values.iter().find(|(name, _)| name == text).map(|(_, value)| *value);
    found.ok_or_else(|| InvalidAttribute::Value { key, value: shortened(text), choices })
}

/// Only whole URIs: the agent also knows snapshots by their ids, and whoever names one of these would get around the
/// origin, which says who may read. Which schemes there are, and which may be used, is the agent's to say.
fn check_source(source: &str) -> Result<(), InvalidAttribute> {
    let refused = |why| {
        let shown = without_credentials(source);
        Err(InvalidAttribute::Source { source_text: shortened(&shown), why })
    };
    if source.len() > MAX_SOURCE_BYTES {
        return refused("it is longer than 2048 bytes");
    }
    if source.chars().any(char::is_control) {
        return refused("it has a control character");
    }
    let Some((scheme, rest)) = source.split_once("://") else {
        return refused(
            "it must be a URI such as gs://bucket/model; snapshot ids cannot be named by a volume",
        );
    };
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_lowercase())
        && scheme.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if !is_scheme {
        return refused("it must begin with a scheme such as gs://");
    }
    let is_web = scheme == "http" || scheme == "https";
    if is_web && rest.split('/').next().is_some_and(|host| host.contains('@')) {
        return refused("credentials do not belong in a source; name a secret with nodePublishSecretRef");
    }
    let plain = rest.to_ascii_lowercase().replace("%2e", ".").replace("%2f", "/").replace("%5c", "\\");
    if plain.split(['/', '\\']).any(|part| part == ".." || part == ".") {
        return refused("its path must not have . or .. in it");
    }
    Ok(())
}

/// What is before the `@` of a web address is nobody's business.
fn without_credentials(source: &str) -> String {
    match (source.split_once("://"), source.rsplit_once('@')) {
        (Some((scheme @ ("http" | "https"), _)), Some((_, host))) => format!("{scheme}://…@{host}"),
        _ => source.to_owned(),
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests;
