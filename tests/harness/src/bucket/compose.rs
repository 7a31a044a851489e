//! Objects made of others: what gcloud makes of a large file that it sends in parts at once.

use axum::{
    body::{Body, to_bytes},
    extract::Request,
    http::Response,
};
use serde::Deserialize;

use super::{
    answer::{Shared, json},
    content::Claimed,
    object::Described,
    refusal::Refusal,
    request::{Conditions, Named, Query},
    session::content,
};

/// Bytes that the list of sources may have.
const LIST_BYTES: usize = 1 << 20;
/// Most sources of one object.
const MOST_SOURCES: usize = 32;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Composition {
    source_objects: Vec<Source>,
    #[serde(default)]
    destination: Described,
}

#[derive(Debug, Deserialize)]
struct Source {
    name: String,
    /// JSON numbers of 64 bits travel as strings.
    generation: Option<String>,
}

/// Makes an object of others of its bucket, one after the other. It has no MD5, as the real ones have none.
pub(super) async fn compose(
    shared: &Shared,
    named: Named,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    let query = Query::of(request.uri());
    let conditions = Conditions::of(&query, request.headers())?;
    let body = to_bytes(request.into_body(), LIST_BYTES).await;
    let body = body.map_err(|error| Refusal::invalid(error.to_string()))?;
    let composition: Composition =
        serde_json::from_slice(&body).map_err(|error| Refusal::invalid(error.to_string()))?;
    let count = composition.source_objects.len();
    if !(1..=MOST_SOURCES).contains(&count) {
        let why =
            format!("An object is made of 1 to {MOST_SOURCES} source components, and {count} are named.");
        return Err(Refusal::invalid(why));
    }
    let mut pieces = Vec::new();
    for source in composition.source_objects {
        let generation = source.generation.map(|generation| generation.parse()).transpose();
        let generation = generation.map_err(|_| Refusal::invalid("Invalid generation."))?;
        let source = Named { bucket: named.bucket.clone(), name: source.name };
        let found = shared.store.get(&source, generation, &Conditions::default())?;
        pieces.push(found.content.bytes.clone());
    }
    // What gcloud says of the whole it has from the first part, checksums and all.
    let content = content(pieces, false, &Claimed::default()).await?;
    let stored = shared.store.put(&named, content, composition.destination, &conditions)?;
    Ok(json(&stored.resource(&shared.endpoint)))
}
