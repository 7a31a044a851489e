//! What the hub says, as errors with a remedy.

use http::StatusCode;
use weightd_types::{Object, SourceUri};

use super::HubClient;
use crate::{SourceError, answer::Answer};

/// A listing was refused.
pub(super) fn of_listing(answer: &Answer, client: &HubClient, uri: &SourceUri) -> SourceError {
    let what = uri.to_string();
    if let Some(error) = of_repository(answer, client, uri, &what) {
        return error;
    }
    let not_found = |remedy: &str| SourceError::NotFound { what: what.clone(), remedy: remedy.to_owned() };
    match (answer.status, answer.code.as_deref()) {
        (_, Some("RevisionNotFound")) => {
            not_found("there is no such branch, tag or commit: check the revision")
        }
        (_, Some("EntryNotFound")) => {
            not_found("there is no such directory in the repository: check the path")
        }
        (StatusCode::NOT_FOUND, _) => not_found("check the repository, the revision and the path"),
        _ => answer.transient(&what).unwrap_or_else(|| answer.unexpected(&what)),
    }
}

/// A read was refused, by the hub itself or by the host it sent us to.
pub(super) fn of_read(
    answer: &Answer,
    client: &HubClient,
    uri: &SourceUri,
    what: &str,
    object: &Object,
    by_hub: bool,
) -> SourceError {
    if let Some(error) = answer.transient(what) {
        return error;
    }
    if !by_hub && matches!(answer.status, StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED) {
        // The signed URL was not taken: the hub gives a new one to the next request.
        let cause = format!("the hub's storage refused the address it was given: {answer}").into();
        return SourceError::Unavailable { what: what.to_owned(), cause, retry_after: answer.retry_after };
    }
    if let Some(error) = of_repository(answer, client, uri, what) {
        return error;
    }
    match answer.status {
        StatusCode::NOT_FOUND => {
            SourceError::Changed { what: what.to_owned(), expected: object.version.to_string() }
        }
        _ => answer.unexpected(what),
    }
}

/// The errors that are about the whole repository.
fn of_repository(answer: &Answer, client: &HubClient, uri: &SourceUri, what: &str) -> Option<SourceError> {
    let (what, detail) = (what.to_owned(), answer.message.clone());
    let page = client.url(&uri.authority().split('/').collect::<Vec<_>>());
    let has_token = client.token.is_some();
    match (answer.status, answer.code.as_deref()) {
        // The hub says so with 401, because it does not tell strangers which private repositories exist.
        (_, Some("RepoNotFound")) => {
            let private = if has_token { "the token may not read it" } else { "HF_TOKEN must be set" };
            let remedy = format!("check its name; if it is private, {private}");
            Some(SourceError::NotFound { what, remedy })
        }
        (_, Some("GatedRepo")) if has_token => {
            let remedy = format!("accept its licence at {page} with the account of the token");
            Some(SourceError::Denied { what, detail, remedy })
        }
        (_, Some("GatedRepo")) => {
            let remedy = format!("accept its licence at {page}, and set HF_TOKEN to a token of that account");
            Some(SourceError::Unauthenticated { what, detail, remedy })
        }
        (StatusCode::UNAUTHORIZED, _) => {
            let remedy = if has_token {
                "the token is invalid or has expired: set HF_TOKEN to a new one"
            } else {
                "check the name; for private and gated repositories set HF_TOKEN"
            };
            Some(SourceError::Unauthenticated { what, detail, remedy: remedy.to_owned() })
        }
        (StatusCode::FORBIDDEN, _) => {
            let remedy = format!("let the account of the token read {page}");
            Some(SourceError::Denied { what, detail, remedy })
        }
        _ => None,
    }
}
