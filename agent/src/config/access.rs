//! The `[access]` section.

use toml::Value;
use url::Url;
use weightd_access::{Config, Exchange, WhoReads};

use super::{
    raw::RawAccess,
    read::{self, Read, Reader},
};

/// Reads and checks the section.
pub(super) fn check(reader: &mut Reader, raw: RawAccess) -> Config {
    let default = Config::default();
    let alone = match (&raw.audience, &raw.provider) {
        (Some(value), None) => Some(("access.audience", value.to_string(), "provider")),
        (None, Some(value)) => Some(("access.provider", value.to_string(), "audience")),
        _ => None,
    };
    if let Some((key, value, missing)) = alone {
        reader.mistake(key, value, format!("means nothing without {missing}: write both, or none"));
    }
    let words = |value: &Value| read::words(value).map(Some);
    let audience = reader.get("access.audience", raw.audience, None, words);
    let provider = reader.get("access.provider", raw.provider, None, words);
    Config {
        identity: reader.get("access.identity", raw.identity, default.identity, identity),
        sts_endpoint: reader.get("access.sts_endpoint", raw.sts_endpoint, default.sts_endpoint.clone(), url),
        exchange: audience.zip(provider).map(|(audience, provider)| Exchange { audience, provider }),
        files: reader.get("access.files", raw.files, default.files.clone(), files),
        web: reader.get("access.web", raw.web, default.web.clone(), web),
        pods_may_pin: reader.get("access.pods_may_pin", raw.pods_may_pin, default.pods_may_pin, read::truth),
        kubelet_directory: reader.get(
            "access.kubelet_directory",
            raw.kubelet_directory,
            default.kubelet_directory.clone(),
            read::path,
        ),
        answers_keep: reader.get(
            "access.answers_keep",
            raw.answers_keep,
            default.answers_keep,
            read::duration,
        ),
        ..default
    }
}

fn identity(value: &Value) -> Read<WhoReads> {
    match value.as_str() {
        Some("pod") => Ok(WhoReads::Pod),
        Some("node") => Ok(WhoReads::Node),
        _ => Err("write \"pod\", or \"node\" to let every pod read what the node may".to_owned()),
    }
}

fn url(value: &Value) -> Read<Url> {
    let url = value.as_str().and_then(|text| Url::parse(text).ok());
    url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        .ok_or_else(|| "write http:// or https:// and a host".to_owned())
}

fn web(value: &Value) -> Read<Vec<Url>> {
    let all = value.as_array().map(|all| all.iter().map(|one| url(one).ok()).collect());
    all.flatten().ok_or_else(|| {
        "write a list of addresses in quotes, such as [\"https://models.example.com/\"]".to_owned()
    })
}

fn files(value: &Value) -> Read<Vec<String>> {
    let remedy = || "write a list of absolute paths in quotes, such as [\"/mnt/models/*\"]".to_owned();
    let path = |value: &Value| {
        let text = value
            .as_str()
            .filter(|text| text.starts_with('/') && !text.split('/').any(|part| part == ".."))?;
        weightd_access::is_pattern(text).then(|| text.to_owned())
    };
    let all = value.as_array().ok_or_else(remedy)?;
    all.iter().map(path).collect::<Option<_>>().ok_or_else(remedy)
}
