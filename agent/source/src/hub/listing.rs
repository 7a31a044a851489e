//! Resolving a revision to its commit, and listing that commit's tree.

use http::{HeaderMap, header::LINK};
use serde::{Deserialize, de::DeserializeOwned};
use url::Url;
use weightd_types::{Checksums, SourceUri, Version};

use super::{HubClient, error};
use crate::{
    Listed, SourceError,
    answer::{self, Answer},
    pages::{self, Pages, Unread},
};

/// The hub's own default.
const MAIN: &str = "main";

#[derive(Debug, Deserialize)]
struct Revision {
    sha: String,
}

#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    oid: String,
    lfs: Option<Lfs>,
}

#[derive(Debug, Deserialize)]
struct Lfs {
    oid: String,
    size: u64,
}

pub(super) async fn list(client: &HubClient, uri: &SourceUri) -> Result<Vec<Listed>, SourceError> {
    let mut pages = Pages::default();
    let commit = commit(client, uri, &mut pages).await?;
    let below = if uri.prefix().is_empty() { String::new() } else { format!("{}/", uri.prefix()) };
    let mut url = api(client, uri, ["tree", &commit].into_iter());
    url.set_query(Some("recursive=true"));
    let mut listing = Vec::new();
    let mut page = Some(url);
    while let Some(url) = page {
        let (entries, next) = get::<Vec<Entry>>(client, uri, url, &mut pages).await?;
        let files = entries.into_iter().filter(|entry| entry.kind == "file");
        for entry in files.filter(|entry| entry.path.starts_with(&below)) {
            listing.push(listed(uri, &commit, entry.path[below.len()..].to_owned(), entry)?);
        }
        pages::check_count(listing.len()).map_err(|endless| endless.of(&uri.to_string()))?;
        page = next;
    }
    if listing.is_empty() {
        let remedy = "the repository is there and has no files below this directory".to_owned();
        return Err(SourceError::NotFound { what: uri.to_string(), remedy });
    }
    Ok(listing)
}

async fn commit(client: &HubClient, uri: &SourceUri, pages: &mut Pages) -> Result<String, SourceError> {
    let revision = uri.revision().unwrap_or(MAIN);
    let url = api(client, uri, ["revision", revision].into_iter());
    let (Revision { sha }, _) = get(client, uri, url, pages).await?;
    // It becomes part of URLs and of versions.
    if sha.len() < 40 || !sha.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(nonsense(uri, format!("the commit of {revision:?} is {sha:?}")));
    }
    Ok(sha)
}

fn listed(uri: &SourceUri, commit: &str, name: String, entry: Entry) -> Result<Listed, SourceError> {
    let mut checksums = Checksums::default();
    let size = match &entry.lfs {
        Some(lfs) => {
            let invalid = |_| nonsense(uri, format!("the sha256 of {:?} is {:?}", entry.path, lfs.oid));
            checksums.sha256 = Some(lfs.oid.parse().map_err(invalid)?);
            lfs.size
        }
        None => {
            let mut sha1 = [0; 20];
            let invalid = |_| nonsense(uri, format!("the git id of {:?} is {:?}", entry.path, entry.oid));
            hex::decode_to_slice(&entry.oid, &mut sha1).map_err(invalid)?;
            checksums.git_sha1 = Some(sha1);
            entry.size
        }
    };
    let version = Version::Git { commit: commit.to_owned(), oid: entry.oid };
    Ok(Listed::new(uri, name, size, version, checksums))
}

/// `/api/models/ORG/NAME/` and parts.
fn api<'a>(client: &HubClient, uri: &'a SourceUri, parts: impl Iterator<Item = &'a str>) -> Url {
    let parts = ["api", "models"].into_iter().chain(uri.authority().split('/')).chain(parts);
    client.url(&parts.collect::<Vec<_>>())
}

/// A document of the API, and the address of its next page.
async fn get<T: DeserializeOwned>(
    client: &HubClient,
    uri: &SourceUri,
    url: Url,
    pages: &mut Pages,
) -> Result<(T, Option<Url>), SourceError> {
    let what = uri.to_string();
    pages.ask(url.as_str()).map_err(|endless| endless.of(&what))?;
    let response = client.get(url.clone(), &HeaderMap::new(), &what).await?;
    if !response.status().is_success() {
        return Err(error::of_listing(&Answer::read(response).await, client, uri));
    }
    let next = next_page(response.headers(), client, uri)?;
    let body = pages.read(url.as_str(), response.bytes_stream()).await.map_err(|unread| match unread {
        Unread::BrokeOff(error) => answer::broke_off(&what, &error.without_url()),
        Unread::Endless(endless) => endless.of(&what),
    })?;
    let document = serde_json::from_slice(&body)
        .map_err(|error| nonsense(uri, format!("it is no answer of a hub: {error}")))?;
    Ok((document, next))
}

/// The address that a `Link` header calls `next`. It must be the hub's own: the token goes there.
fn next_page(headers: &HeaderMap, client: &HubClient, uri: &SourceUri) -> Result<Option<Url>, SourceError> {
    let links = headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok());
    let next = links.flat_map(|links| links.split(',')).find_map(|link| {
        let (address, relation) = link.trim().strip_prefix('<')?.split_once('>')?;
        (relation.contains("rel=\"next\"") || relation.contains("rel=next")).then_some(address)
    });
    let Some(next) = next else { return Ok(None) };
    match client.endpoint.join(next) {
        Ok(url) if client.is_own(&url) => Ok(Some(url)),
        _ => Err(nonsense(uri, format!("its next page is {next:?}"))),
    }
}

fn nonsense(uri: &SourceUri, detail: String) -> SourceError {
    SourceError::Protocol { what: uri.to_string(), detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_are_listed_or_refused_without_a_panic() {
        let uri: SourceUri = "hf://o/n".parse().unwrap();
        bolero::check!().with_type::<(String, String, Option<String>)>().for_each(|(path, oid, sha256)| {
            let lfs = sha256.as_ref().map(|sha256| serde_json::json!({"oid": sha256, "size": 1}));
            let entry = serde_json::json!({"type": "file", "path": path, "oid": oid, "lfs": lfs});
            let _ = listed(&uri, "c", path.clone(), serde_json::from_value(entry).unwrap());
        });
        bolero::check!().for_each(|bytes: &[u8]| {
            let _ = serde_json::from_slice::<Vec<Entry>>(bytes);
        });
    }
}
