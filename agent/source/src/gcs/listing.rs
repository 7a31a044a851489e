//! Listing over the JSON API.

use base64::{Engine, engine::general_purpose::STANDARD};
use http::StatusCode;
use serde::{Deserialize, de::DeserializeOwned};
use url::Url;
use weightd_types::{Checksums, Crc32c, SourceUri, Version};

use super::{GcsClient, error};
use crate::{
    Listed, SourceError,
    answer::{self, Answer},
    memory::is_marker,
    pages::{self, Pages, Unread},
};

/// What is asked of each object: the rest of a listing is four times as long.
const FIELDS: &str =
    "nextPageToken,items(name,size,generation,crc32c,md5Hash,contentEncoding,customerEncryption(keySha256))";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    #[serde(default)]
    items: Vec<Item>,
    next_page_token: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    name: String,
    /// The API writes 64-bit numbers as strings.
    #[serde(default)]
    size: String,
    generation: String,
    crc32c: Option<String>,
    md5_hash: Option<String>,
    content_encoding: Option<String>,
    customer_encryption: Option<serde_json::Value>,
}

pub(super) async fn list(client: &GcsClient, uri: &SourceUri) -> Result<Vec<Listed>, SourceError> {
    let below = match uri.prefix() {
        "" => String::new(),
        prefix => format!("{prefix}/"),
    };
    let url = client.url(&["storage", "v1", "b", uri.authority(), "o"]);
    let endless = |endless: pages::Endless| endless.of(&uri.to_string());
    let (mut listing, mut pages) = (Vec::new(), Pages::default());
    let mut page_token: Option<String> = None;
    loop {
        let mut query = vec![("prefix", below.as_str()), ("fields", FIELDS)];
        query.extend(page_token.as_deref().map(|token| ("pageToken", token)));
        pages.ask(&format!("{url}?{}", page_token.as_deref().unwrap_or_default())).map_err(endless)?;
        let answered = get::<Page>(client, url.clone(), &query, &uri.to_string(), &mut pages).await?;
        let page = answered.map_err(|answer| error::of_listing(&answer, uri, &client.settings))?;
        for item in page.items {
            listing.extend(entry(uri, &below, &item)?);
        }
        pages::check_count(listing.len()).map_err(endless)?;
        match page.next_page_token.filter(|token| !token.is_empty()) {
            None => break,
            next => page_token = next,
        }
    }
    if listing.is_empty() {
        return Err(nothing(client, uri).await);
    }
    Ok(listing)
}

/// One entry; nothing for a marker of a directory.
fn entry(uri: &SourceUri, below: &str, item: &Item) -> Result<Option<Listed>, SourceError> {
    let url = format!("gs://{}/{}", uri.authority(), item.name);
    let nonsense = |detail: String| SourceError::Protocol { what: url.clone(), detail };
    let Some(name) = item.name.strip_prefix(below) else {
        return Err(nonsense(format!("it was listed below {below:?}")));
    };
    let size = item.size.parse().map_err(|_| nonsense(format!("size {:?}", item.size)))?;
    if is_marker(name, size) {
        return Ok(None);
    }
    let generation =
        item.generation.parse().map_err(|_| nonsense(format!("generation {:?}", item.generation)))?;
    if let Some((why, remedy)) = objection(item, &url) {
        let why = SourceError::Refused { what: url, why, remedy };
        return Ok(Some(Listed::Unfit { name: name.to_owned(), why }));
    }
    let crc32c = item
        .crc32c
        .as_deref()
        .map(|text| crc32c_of(text).ok_or_else(|| nonsense(format!("crc32c {text:?}"))));
    let md5 =
        item.md5_hash.as_deref().map(|text| decode(text).ok_or_else(|| nonsense(format!("md5 {text:?}"))));
    let checksums = Checksums { crc32c: crc32c.transpose()?, md5: md5.transpose()?, ..Checksums::default() };
    Ok(Some(Listed::new(uri, name.to_owned(), size, Version::Generation(generation), checksums)))
}

fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

/// The checksum that a text of the API stands for.
pub(super) fn crc32c_of(text: &str) -> Option<Crc32c> {
    decode(text).map(|bytes| Crc32c(u32::from_be_bytes(bytes)))
}

/// Why an object's stored bytes are not what a read would give.
fn objection(item: &Item, url: &str) -> Option<(String, String)> {
    if item.customer_encryption.is_some() {
        let why = "is encrypted under a key of its owner's, which weightd does not have".to_owned();
        let remedy = format!(
            "rewrite it without one (gcloud storage objects update {url} --clear-encryption-key \
             --decryption-keys=KEY), or leave it out with --exclude"
        );
        return Some((why, remedy));
    }
    let encoding = item.content_encoding.as_deref().filter(|encoding| encoding.contains("gzip"))?;
    let why =
        format!("is stored with Content-Encoding: {encoding}, so ranges of it are not ranges of the file");
    let remedy = "upload it again uncompressed (gcloud storage cp without -z, -Z or -J), \
                  or leave it out with --exclude";
    Some((why, remedy.to_owned()))
}

/// The error of a prefix without objects: often it is an object itself.
async fn nothing(client: &GcsClient, uri: &SourceUri) -> SourceError {
    if uri.prefix().is_empty() {
        return SourceError::nothing_below(uri, false);
    }
    let url = client.url(&["storage", "v1", "b", uri.authority(), "o", uri.prefix()]);
    let (what, fields) = (uri.to_string(), [("fields", "name")]);
    let answered = get::<serde_json::Value>(client, url, &fields, &what, &mut Pages::default()).await;
    let is_object = match answered {
        Ok(answered) => answered.is_ok(),
        Err(error) => return error,
    };
    SourceError::nothing_below(uri, is_object)
}

/// The generation of the object that a URI names; 0 when there is none.
pub(super) async fn generation(client: &GcsClient, uri: &SourceUri) -> Result<i64, SourceError> {
    #[derive(Deserialize)]
    struct Found {
        generation: String,
    }
    let url = client.url(&["storage", "v1", "b", uri.authority(), "o", uri.prefix()]);
    let (what, fields) = (uri.to_string(), [("fields", "generation")]);
    match get::<Found>(client, url, &fields, &what, &mut Pages::default()).await? {
        Ok(Found { generation }) => generation
            .parse()
            .map_err(|_| SourceError::Protocol { what, detail: format!("generation {generation:?}") }),
        Err(answer) if answer.status == StatusCode::NOT_FOUND => Ok(0),
        Err(answer) => Err(error::of_writing(&answer, uri, &client.settings)),
    }
}

/// One request: what was asked, or what was answered instead.
async fn get<T: DeserializeOwned>(
    client: &GcsClient,
    url: Url,
    query: &[(&str, &str)],
    what: &str,
    pages: &mut Pages,
) -> Result<Result<T, Answer>, SourceError> {
    let request = client.web.get(url.clone()).query(query).headers(client.headers(what).await?);
    let response = request.send().await.map_err(|error| answer::no_answer(what, &error))?;
    if response.status() != StatusCode::OK {
        return Ok(Err(Answer::read(response).await));
    }
    let body = pages.read(url.as_str(), response.bytes_stream()).await.map_err(|unread| match unread {
        Unread::BrokeOff(error) => answer::broke_off(what, &error),
        Unread::Endless(endless) => endless.of(what),
    })?;
    let nonsense = |error: serde_json::Error| SourceError::Protocol {
        what: what.to_owned(),
        detail: format!("it is no listing of Cloud Storage: {error}"),
    };
    serde_json::from_slice(&body).map(Ok).map_err(nonsense)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(json: &str) -> Option<Listed> {
        let uri = "gs://b/m".parse().unwrap();
        entry(&uri, "m/", &serde_json::from_str(json).unwrap()).unwrap()
    }

    #[test]
    fn checksums_are_decoded() {
        let item = r#"{"name":"m/a","size":"3","generation":"17","crc32c":"ik4kog==",
                       "md5Hash":"1B2M2Y8AsgTpgAmY7PhCfg=="}"#;
        let listed = listed(item).unwrap();
        let object = listed.object().unwrap();
        assert_eq!(object.checksums.crc32c, Some(Crc32c(0x8a4e_24a2)));
        assert_eq!(object.checksums.md5.unwrap()[..2], [0xd4, 0x1d]);
        assert_eq!((object.size, &object.version), (3, &Version::Generation(17)));
    }

    #[test]
    fn transcoded_and_encrypted_objects_are_refused_by_name_with_a_remedy() {
        for (extra, remedy) in [
            (r#""contentEncoding":"gzip""#, "without -z"),
            (r#""customerEncryption":{"keySha256":"x"}"#, "--clear-encryption-key"),
        ] {
            let item = format!(r#"{{"name":"m/a","size":"3","generation":"1",{extra}}}"#);
            let Some(Listed::Unfit { name, why }) = listed(&item) else { panic!("{item} was taken") };
            let message = why.to_string();
            assert!(name == "a" && message.contains("gs://b/m/a") && message.contains(remedy), "{message}");
            assert!(message.contains("--exclude"), "{message}");
        }
    }

    #[test]
    fn markers_are_left_out_and_nonsense_is_an_error() {
        assert!(listed(r#"{"name":"m/","size":"0","generation":"1"}"#).is_none());
        assert!(listed(r#"{"name":"m/sub/","size":"0","generation":"1"}"#).is_none());
        let uri = "gs://b/m".parse().unwrap();
        let item = serde_json::from_str(r#"{"name":"m/a","size":"-1","generation":"1"}"#).unwrap();
        assert_eq!(entry(&uri, "m/", &item).unwrap_err().kind(), "protocol");
    }

    #[test]
    fn any_bytes_are_listed_or_refused_without_a_panic() {
        let uri: SourceUri = "gs://b/m".parse().unwrap();
        bolero::check!().with_type::<[String; 5]>().for_each(|[name, size, generation, crc32c, md5]| {
            let item = serde_json::json!({
                "name": format!("m/{name}"), "size": size, "generation": generation, "crc32c": crc32c,
                "md5Hash": md5, "contentEncoding": name,
            });
            let item = serde_json::from_value(item).unwrap();
            let _ = entry(&uri, "m/", &item);
        });
        bolero::check!().for_each(|bytes: &[u8]| {
            let _ = serde_json::from_slice::<Page>(bytes);
        });
    }
}
