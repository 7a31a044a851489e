//! Files: a redirect first, then the bytes.

use axum::{
    body::Body,
    extract::{Path, RawQuery, State},
    http::{HeaderMap, HeaderValue, Response, StatusCode, header},
};

use super::{Refused, Shared, error, locked, repository::File};
use crate::{
    name,
    serve::{plain, ranged},
};

/// `GET` and `HEAD /{owner}/{name}/resolve/{revision}/{path}`: never the bytes themselves.
pub(super) async fn resolve(
    State(state): State<Shared>,
    Path((owner, repository, revision, path)): Path<(String, String, String, String)>,
    headers: HeaderMap,
) -> Result<Response<Body>, Refused> {
    let id = format!("{owner}/{repository}");
    let state = locked(&state);
    let (commit, file) = find(&state, &id, &revision, &path, &headers)?;
    let (status, location) = match &file.sha256 {
        Some(sha256) => (StatusCode::FOUND, format!("{}/{sha256}?signature={}", state.cdn, state.signature)),
        None => {
            let path = name::path(&path);
            (StatusCode::TEMPORARY_REDIRECT, format!("/api/resolve-cache/models/{id}/{commit}/{path}"))
        }
    };
    let mut answer = plain(status, "");
    insert(&mut answer, header::LOCATION.as_str(), &location);
    describe(&mut answer, &commit, &file);
    insert(&mut answer, "x-linked-size", &file.bytes.len().to_string());
    insert(&mut answer, "x-linked-etag", &format!("\"{}\"", file.sha256.as_ref().unwrap_or(&file.oid)));
    Ok(answer)
}

/// `GET` and `HEAD /api/resolve-cache/...`: a small file, where the redirect leads.
pub(super) async fn cached(
    State(state): State<Shared>,
    Path((owner, repository, commit, path)): Path<(String, String, String, String)>,
    headers: HeaderMap,
) -> Result<Response<Body>, Refused> {
    let id = format!("{owner}/{repository}");
    let (commit, file) = find(&locked(&state), &id, &commit, &path, &headers)?;
    let mut answer = ranged(&file.bytes, &headers);
    describe(&mut answer, &commit, &file);
    Ok(answer)
}

/// `GET` and `HEAD` at the other origin: a large file by its sha256, for those whose redirect is not too old.
pub(super) async fn cdn(
    State(state): State<Shared>,
    Path(sha256): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response<Body> {
    let state = locked(&state);
    if headers.contains_key(header::AUTHORIZATION) {
        return plain(StatusCode::BAD_REQUEST, "only one auth mechanism allowed: the signature in the query");
    }
    if query != Some(format!("signature={}", state.signature)) {
        return plain(StatusCode::FORBIDDEN, "the signature has expired");
    }
    let Some(bytes) = state.repositories.values().find_map(|history| history.large_file(&sha256)) else {
        return plain(StatusCode::NOT_FOUND, "no such file");
    };
    let mut answer = ranged(&bytes, &headers);
    insert(&mut answer, header::ETAG.as_str(), &format!("\"{sha256}\""));
    answer
}

fn find(
    state: &super::State,
    id: &str,
    revision: &str,
    path: &str,
    headers: &HeaderMap,
) -> Result<(String, File), Refused> {
    let found = state.find(id, revision, headers)?;
    state.may_read(id, &found, headers)?;
    let missing = || error(StatusCode::NOT_FOUND, "EntryNotFound", "Entry not found");
    let file = found.files.get(path).cloned().ok_or_else(missing)?;
    Ok((found.commit.clone(), file))
}

fn describe(answer: &mut Response<Body>, commit: &str, file: &File) {
    insert(answer, "x-repo-commit", commit);
    insert(answer, header::ETAG.as_str(), &format!("\"{}\"", file.oid));
}

fn insert(answer: &mut Response<Body>, name: &'static str, value: &str) {
    let value = HeaderValue::from_str(value).expect("hashes and escaped paths are plain text");
    answer.headers_mut().insert(name, value);
}
