//! What a model is made of, asked for by name: a plain web server cannot be listed.
//!
//! Where `model.safetensors.index.json` exists, the shards it names are taken, else `model.safetensors`; and
//! beside them those companions that exist. Each is asked for its first byte: the answer tells whether it is
//! there, how long it is, which version it is, and whether the server answers requests for ranges at all.

use std::collections::BTreeSet;

use futures::{StreamExt, TryStreamExt, stream};
use http::StatusCode;
use object_store::{Error as StoreError, GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt};
use weightd_types::WeightIndex;

use super::HttpSource;
use crate::{
    Listed, SourceError,
    answer::{Answer, broke_off, find},
    cloud,
    pages::{self, Pages, Unread},
};

const INDEX: &str = "model.safetensors.index.json";
const WHOLE: &str = "model.safetensors";

/// Most shards that are asked for, far more than the largest models have.
const SHARDS: usize = 100_000;

/// Requests at once.
const PROBES: usize = 8;

/// Files that loaders look for beside the weights.
const COMPANIONS: [&str; 18] = [
    "config.json",
    "generation_config.json",
    "configuration.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "adapter_config.json",
    "adapter_model.safetensors",
];

pub(super) async fn list(source: &HttpSource) -> Result<Vec<Listed>, SourceError> {
    let mut names: BTreeSet<String> = COMPANIONS.iter().map(|name| (*name).to_owned()).collect();
    match probe(source, INDEX).await? {
        None => names.insert(WHOLE.to_owned()),
        Some(listed) => {
            if let Some(object) = listed.object() {
                names.extend(shards(source, object.size).await?);
            }
            names.insert(INDEX.to_owned())
        }
    };
    let probes = names.into_iter().map(|name| async move { probe(source, &name).await });
    let found: Vec<Option<Listed>> = stream::iter(probes).buffer_unordered(PROBES).try_collect().await?;
    let listing: Vec<Listed> = found.into_iter().flatten().collect();
    if listing.is_empty() {
        return lone(source).await;
    }
    Ok(listing)
}

/// The shards that the index names.
async fn shards(source: &HttpSource, size: u64) -> Result<Vec<String>, SourceError> {
    let what = format!("{}/{INDEX}", source.uri.root());
    let nonsense = |detail: String| SourceError::Protocol { what: what.clone(), detail };
    WeightIndex::check_length(size).map_err(|error| nonsense(error.to_string()))?;
    let path = cloud::path(&key(source, INDEX), &what)?;
    let result = source.server.get(&path).await;
    let result = result.map_err(|error| cloud::error::of_listing(&error, &source.uri))?;
    // What it sends may be longer than what it said.
    let json = pages::read(&what, result.into_stream(), Pages::default().room()).await;
    let json = json.map_err(|unread| match unread {
        Unread::BrokeOff(error) => broke_off(&what, &error),
        Unread::Endless(endless) => endless.of(&what),
    })?;
    let index = WeightIndex::parse(&json).map_err(|error| nonsense(error.to_string()))?;
    let shards: Vec<String> = index.shards().into_iter().map(str::to_owned).collect();
    if shards.len() > SHARDS {
        return Err(nonsense(format!("it names {} shards", shards.len())));
    }
    Ok(shards)
}

/// The file that the URL itself names.
async fn lone(source: &HttpSource) -> Result<Vec<Listed>, SourceError> {
    let what = source.uri.to_string();
    let nothing = SourceError::NotFound {
        what,
        remedy: format!(
            "this server does not list directories (WebDAV), and neither {INDEX} nor {WHOLE} nor a file of that \
             URL is there: check the URL"
        ),
    };
    let name = source.uri.prefix().rsplit('/').next().unwrap_or_default();
    if name.is_empty() {
        return Err(nothing);
    }
    match first_byte(source, source.uri.prefix()).await? {
        Found::Here(meta) => Ok(vec![source.listed(name.to_owned(), &meta)]),
        // A page that stands for the directory is such an answer too; a name like a file's is taken for one.
        Found::Unranged if name.contains('.') => {
            Ok(vec![source.refused(name, |_| cloud::error::no_ranges(source.uri.root()))])
        }
        Found::Unranged | Found::Nothing => Err(nothing),
    }
}

/// Asks for a file by name; nothing when it is not there.
async fn probe(source: &HttpSource, name: &str) -> Result<Option<Listed>, SourceError> {
    let found = match first_byte(source, &key(source, name)).await {
        // Also of a file that need not be there: without it, a pod would be shown less than the operator.
        Err(SourceError::Redirected { to, remedy, .. }) => {
            let what = format!("{}/{name}", source.uri.root());
            return Err(SourceError::Redirected { what, to, remedy });
        }
        other => other?,
    };
    Ok(match found {
        Found::Here(meta) => Some(source.listed(name.to_owned(), &meta)),
        Found::Unranged => Some(source.refused(name, cloud::error::no_ranges)),
        Found::Nothing => None,
    })
}

fn key(source: &HttpSource, name: &str) -> String {
    let prefix = source.uri.prefix();
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") }
}

enum Found {
    Here(ObjectMeta),
    Unranged,
    Nothing,
}

async fn first_byte(source: &HttpSource, key: &str) -> Result<Found, SourceError> {
    // An index may name anything; what is no path is not asked for, and the snapshot will miss it.
    let Ok(path) = object_store::path::Path::parse(key) else { return Ok(Found::Nothing) };
    let error = match source.server.get_opts(&path, GetOptions::new().with_range(Some(0..1))).await {
        Ok(result) => return Ok(Found::Here(result.meta)),
        Err(error) => error,
    };
    match find::<Answer>(&error).map(|answer| answer.status) {
        Some(StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED) => Ok(Found::Nothing),
        // An empty file has no first byte.
        Some(StatusCode::RANGE_NOT_SATISFIABLE) => {
            let meta = source.server.head(&path).await;
            meta.map(Found::Here).map_err(|error| cloud::error::of_listing(&error, &source.uri))
        }
        None if matches!(error, StoreError::NotSupported { .. }) => Ok(Found::Unranged),
        _ => Err(cloud::error::of_listing(&error, &source.uri)),
    }
}
