//! What a repository is and what it holds: JSON.

use std::collections::{BTreeMap, BTreeSet};

use axum::{
    body::Body,
    extract::{Path, RawQuery, State},
    http::{HeaderMap, Response, header},
};
use serde_json::{Value, json};

use super::{
    Refused, Shared, locked,
    repository::{File, Revision},
};
use crate::name::segment;

/// `GET /api/models/{owner}/{name}`.
pub(super) async fn info(
    State(state): State<Shared>,
    Path((owner, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response<Body>, Refused> {
    describe(&state, &format!("{owner}/{name}"), "main", &headers)
}

/// `GET /api/models/{owner}/{name}/revision/{revision}`.
pub(super) async fn info_at(
    State(state): State<Shared>,
    Path((owner, name, revision)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Result<Response<Body>, Refused> {
    describe(&state, &format!("{owner}/{name}"), &revision, &headers)
}

fn describe(
    state: &Shared,
    id: &str,
    revision: &str,
    headers: &HeaderMap,
) -> Result<Response<Body>, Refused> {
    let revision = locked(state).find(id, revision, headers)?;
    let siblings: Vec<Value> = revision.files.keys().map(|path| json!({ "rfilename": path })).collect();
    let gated = if revision.gated { json!("manual") } else { json!(false) };
    let description = json!({
        "_id": "0", "id": id, "modelId": id, "sha": revision.commit, "private": revision.private,
        "gated": gated, "disabled": false, "siblings": siblings,
    });
    Ok(in_json(&description))
}

/// `GET /api/models/{owner}/{name}/tree/{revision}?recursive=true`: pages joined by `Link` headers.
pub(super) async fn tree(
    State(state): State<Shared>,
    Path((owner, name, asked)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response<Body>, Refused> {
    let id = format!("{owner}/{name}");
    let state = locked(&state);
    let revision = state.find(&id, &asked, &headers)?;
    let query = parameters(query.as_deref().unwrap_or_default());
    let recursive = query.get("recursive").is_some_and(|value| *value != "false" && *value != "False");
    let entries = entries(&revision, recursive);
    let first: usize = query.get("cursor").and_then(|cursor| cursor.parse().ok()).unwrap_or(0);
    let page: Vec<&Value> = entries.iter().skip(first).take(state.page).collect();
    let mut answer = in_json(&json!(page));
    if first + state.page < entries.len() {
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let next = format!(
            "<http://{host}/api/models/{id}/tree/{}?recursive={recursive}&cursor={}>; rel=\"next\"",
            segment(&asked),
            first + state.page
        );
        answer.headers_mut().insert(header::LINK, next.parse().expect("segments are escaped"));
    }
    Ok(answer)
}

/// Directories are entries too.
fn entries(revision: &Revision, recursive: bool) -> Vec<Value> {
    let parents = revision.files.keys().flat_map(|path| path.match_indices('/').map(|(at, _)| &path[..at]));
    let directories: BTreeSet<&str> = parents.collect();
    let directories = directories
        .into_iter()
        .map(|path| (path, json!({ "type": "directory", "oid": "0", "size": 0, "path": path })));
    let files = revision.files.iter().map(|(path, file)| (path.as_str(), entry(path, file)));
    let here = directories.chain(files).filter(|(path, _)| recursive || !path.contains('/'));
    here.map(|(_, entry)| entry).collect()
}

fn entry(path: &str, file: &File) -> Value {
    let mut entry = json!({ "type": "file", "oid": file.oid, "size": file.bytes.len(), "path": path });
    if let Some(sha256) = &file.sha256 {
        entry["lfs"] = json!({ "oid": sha256, "size": file.bytes.len(), "pointerSize": 134 });
    }
    entry
}

fn parameters(query: &str) -> BTreeMap<&str, &str> {
    query.split('&').filter_map(|pair| pair.split_once('=')).collect()
}

fn in_json(value: &Value) -> Response<Body> {
    let answer = Response::builder().header(header::CONTENT_TYPE, "application/json");
    answer.body(Body::from(value.to_string())).expect("these headers are valid")
}
