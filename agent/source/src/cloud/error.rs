//! What S3, Azure and HTTP servers say, as errors with a remedy.

use http::StatusCode;
use object_store::{Error as StoreError, client::HttpError};
use weightd_types::{Object, Scheme, SourceUri};

use crate::{
    SourceError,
    answer::{Answer, chain, find, no_answer},
    pages::Endless,
    redirect::Astray,
};

/// Words of S3 and Azure for an identity that is wrong, rather than one that may not.
const UNAUTHENTICATED: [&str; 8] = [
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "RequestTimeTooSkewed",
    "AuthenticationFailed",
    "InvalidAuthenticationInfo",
];

/// Where the library looks for credentials: an error that names one of these is about the identity.
const CREDENTIAL_SERVERS: [&str; 5] =
    ["169.254.169.254", "169.254.170.2", "://sts.", "login.microsoftonline.com", "/oauth2/"];

/// A bucket or container that is not there.
pub(super) fn no_bucket(uri: &SourceUri) -> SourceError {
    let kind = if uri.scheme() == Scheme::Az { "container" } else { "bucket" };
    SourceError::NotFound {
        what: format!("{}://{}", uri.scheme().as_str(), uri.authority()),
        remedy: format!("there is no such {kind}: check its name"),
    }
}

/// A listing failed.
pub(crate) fn of_listing(error: &StoreError, uri: &SourceUri) -> SourceError {
    let what = uri.to_string();
    if let Some(answer) = find::<Answer>(error) {
        return match answer.status {
            StatusCode::NOT_FOUND => no_bucket(uri),
            _ => of_answer(answer, error, uri, &what),
        };
    }
    without_answer(error, uri, &what)
}

/// A read failed before its first byte.
pub(crate) fn of_read(error: &StoreError, uri: &SourceUri, what: &str, object: &Object) -> SourceError {
    let changed = || SourceError::Changed { what: what.to_owned(), expected: object.version.to_string() };
    if let Some(answer) = find::<Answer>(error) {
        let code = answer.code.as_deref();
        return match answer.status {
            StatusCode::NOT_FOUND if matches!(code, Some("NoSuchBucket" | "ContainerNotFound")) => {
                no_bucket(uri)
            }
            // The pinned version is longer than what is there now: some servers look at the range first.
            StatusCode::NOT_FOUND | StatusCode::PRECONDITION_FAILED | StatusCode::RANGE_NOT_SATISFIABLE => {
                changed()
            }
            _ => of_answer(answer, error, uri, what),
        };
    }
    match error {
        StoreError::NotFound { .. } | StoreError::Precondition { .. } => changed(),
        _ => without_answer(error, uri, what),
    }
}

fn of_answer(answer: &Answer, error: &StoreError, uri: &SourceUri, what: &str) -> SourceError {
    if let Some(error) = answer.transient(what) {
        return error;
    }
    let (code, detail) = (answer.code.as_deref().unwrap_or_default(), answer.to_string());
    let about_identity = UNAUTHENTICATED.contains(&code) || names_credential_server(error);
    let what = what.to_owned();
    match answer.status {
        StatusCode::UNAUTHORIZED => unauthenticated(uri, what, detail),
        _ if about_identity => unauthenticated(uri, what, detail),
        StatusCode::FORBIDDEN => SourceError::Denied { what, detail, remedy: role(uri).to_owned() },
        StatusCode::MOVED_PERMANENTLY | StatusCode::TEMPORARY_REDIRECT if uri.scheme() == Scheme::S3 => {
            let why =
                format!("the bucket is in another region ({detail}): set source.s3.region or AWS_REGION");
            SourceError::Configuration { what, why }
        }
        _ => answer.unexpected(&what),
    }
}

fn without_answer(error: &StoreError, uri: &SourceUri, what: &str) -> SourceError {
    if let Some(endless) = find::<Endless>(error) {
        return endless.of(what);
    }
    if let Some(astray) = find::<Astray>(error) {
        return astray.of(uri, what);
    }
    if names_credential_server(error) {
        return unauthenticated(uri, what.to_owned(), chain(error));
    }
    if find::<HttpError>(error).is_some() {
        return no_answer(what, error);
    }
    let (what, detail) = (what.to_owned(), chain(error));
    match error {
        StoreError::PermissionDenied { .. } => {
            SourceError::Denied { what, detail, remedy: role(uri).to_owned() }
        }
        StoreError::Unauthenticated { .. } => unauthenticated(uri, what, detail),
        StoreError::NotSupported { .. } => no_ranges(what),
        _ => SourceError::Protocol { what, detail },
    }
}

/// The error of a server that sends all of an object when a part of it is asked for.
pub(crate) fn no_ranges(what: String) -> SourceError {
    SourceError::Refused {
        what,
        why:
            "the server does not answer requests for ranges of it, so a transfer could neither be split nor \
              resumed"
                .to_owned(),
        remedy: "serve it with a server that does (nginx, Apache, Caddy, an object store)".to_owned(),
    }
}

fn names_credential_server(error: &StoreError) -> bool {
    let text = chain(error);
    CREDENTIAL_SERVERS.iter().any(|server| text.contains(server))
}

fn unauthenticated(uri: &SourceUri, what: String, detail: String) -> SourceError {
    let remedy = match uri.scheme() {
        Scheme::S3 => {
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN, if it is temporary and has \
             expired, anew), or AWS_PROFILE, or give the pod a role; for public buckets set source.s3.anonymous = \
             true"
        }
        Scheme::Az => {
            "set AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN or a workload identity, renew it if it has \
             expired; for public containers set source.azure.anonymous = true"
        }
        _ => "weightd sends no credentials to web servers: serve it without, on a network that may read it",
    };
    SourceError::Unauthenticated { what, detail, remedy: remedy.to_owned() }
}

fn role(uri: &SourceUri) -> &'static str {
    match uri.scheme() {
        Scheme::S3 => "allow s3:ListBucket on the bucket and s3:GetObject on its objects to this identity",
        Scheme::Az => "grant the role Storage Blob Data Reader on the container to this identity",
        _ => "let the server answer requests from this machine",
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use object_store::client::HttpErrorKind;
    use weightd_types::{Checksums, Version};

    use super::*;

    fn generic(status: u16, body: &str) -> StoreError {
        let status = StatusCode::from_u16(status).unwrap();
        let answer = Answer::new(status, &HeaderMap::new(), body.as_bytes());
        let source = HttpError::new(HttpErrorKind::Unknown, answer);
        StoreError::Generic { store: "S3", source: Box::new(source) }
    }

    fn kinds(status: u16, code: &str) -> (&'static str, &'static str) {
        let uri: SourceUri = "s3://b/m".parse().unwrap();
        let listed = crate::Listed::new(&uri, "a".into(), 1, Version::Etag("e".into()), Checksums::default());
        let body = format!("<Error><Code>{code}</Code><Message>m</Message></Error>");
        let read = of_read(&generic(status, &body), &uri, "s3://b/m/a", listed.object().unwrap());
        (of_listing(&generic(status, &body), &uri).kind(), read.kind())
    }

    #[test]
    fn each_answer_has_its_error() {
        assert_eq!(kinds(404, "NoSuchBucket"), ("not_found", "not_found"));
        assert_eq!(kinds(404, "NoSuchKey").1, "changed");
        assert_eq!(kinds(412, "PreconditionFailed").1, "changed");
        assert_eq!(kinds(403, "AccessDenied"), ("denied", "denied"));
        assert_eq!(kinds(400, "ExpiredToken"), ("unauthenticated", "unauthenticated"));
        assert_eq!(kinds(403, "SignatureDoesNotMatch"), ("unauthenticated", "unauthenticated"));
        assert_eq!(kinds(503, "SlowDown"), ("throttled", "throttled"));
        assert_eq!(kinds(500, "InternalError"), ("unavailable", "unavailable"));
        assert_eq!(kinds(301, "PermanentRedirect"), ("configuration", "configuration"));
        assert_eq!(kinds(418, ""), ("protocol", "protocol"));
    }
}
