//! What Cloud Storage says, as errors with a remedy.

use google_cloud_auth::errors::CredentialsError;
use google_cloud_storage::Error as StorageError;
use http::{HeaderMap, StatusCode};
use weightd_types::{Object, SourceUri};

use crate::{
    SourceError,
    answer::{Answer, chain, find, no_answer},
    config::GcsSettings,
};

const CREDENTIALS_REMEDY: &str = "run `gcloud auth application-default login`, or set \
     GOOGLE_APPLICATION_CREDENTIALS to a key file, or give the pod a service account by Workload Identity; \
     for public buckets set source.gcs.anonymous = true";

/// There are no credentials, or they cannot be read.
pub(super) fn no_credentials(what: &str, detail: &str) -> SourceError {
    SourceError::Unauthenticated {
        what: what.to_owned(),
        detail: detail.to_owned(),
        remedy: CREDENTIALS_REMEDY.to_owned(),
    }
}

/// A token could not be had.
pub(super) fn of_credentials(error: &CredentialsError, what: &str) -> SourceError {
    let detail = chain(error);
    // Off Google's cloud the library ends at a metadata server that is not there, and calls that transient.
    let nowhere = detail.contains("not running in a Google Cloud Environment");
    if error.is_transient() && !nowhere {
        return SourceError::Unavailable { what: what.to_owned(), cause: detail.into(), retry_after: None };
    }
    if detail.contains("invalid_grant") {
        let remedy = "the stored login has expired or was revoked: run `gcloud auth application-default login` \
                      again";
        return SourceError::Unauthenticated { what: what.to_owned(), detail, remedy: remedy.to_owned() };
    }
    let nothing = "there are no application default credentials, and no metadata server of Google's cloud";
    no_credentials(what, if nowhere { nothing } else { &detail })
}

/// A listing was refused.
pub(super) fn of_listing(answer: &Answer, uri: &SourceUri, settings: &GcsSettings) -> SourceError {
    let what = uri.to_string();
    if answer.status == StatusCode::NOT_FOUND {
        let what = format!("gs://{}", uri.authority());
        return SourceError::NotFound { what, remedy: "there is no such bucket: check its name".to_owned() };
    }
    let role = "grant roles/storage.objectViewer on the bucket";
    forbidden(answer, &what, role, settings.anonymous)
        .or_else(|| answer.transient(&what))
        .unwrap_or_else(|| answer.unexpected(&what))
}

/// The errors that mean "not you", whatever was asked.
fn forbidden(answer: &Answer, what: &str, role: &str, anonymous: bool) -> Option<SourceError> {
    let (what, detail) = (what.to_owned(), answer.message.clone());
    if answer.message.contains("requester pays") {
        let remedy = "set source.gcs.user_project to the project that shall pay".to_owned();
        return Some(SourceError::Denied { what, detail, remedy });
    }
    match answer.status {
        StatusCode::UNAUTHORIZED => {
            let remedy = if anonymous {
                "it is not public: set source.gcs.anonymous = false and provide credentials"
            } else {
                "the access token is invalid or has expired: run `gcloud auth application-default login` \
                 again, or check the service account and the clock of this machine"
            };
            Some(SourceError::Unauthenticated { what, detail, remedy: remedy.to_owned() })
        }
        StatusCode::FORBIDDEN => {
            let slow = matches!(
                answer.code.as_deref(),
                Some("rateLimitExceeded" | "userRateLimitExceeded" | "quotaExceeded")
            );
            (!slow).then(|| SourceError::Denied { what, detail, remedy: format!("{role} to this identity") })
        }
        _ => None,
    }
}

/// A read failed before its first byte.
pub(super) fn of_read(error: &StorageError, uri: &SourceUri, what: &str, object: &Object) -> SourceError {
    if let Some(error) = find::<CredentialsError>(error) {
        return of_credentials(error, what);
    }
    let Some(answer) = answered(error) else {
        if error.is_deserialization() {
            return SourceError::Protocol { what: what.to_owned(), detail: chain(error) };
        }
        return no_answer(what, error);
    };
    let changed = || SourceError::Changed { what: what.to_owned(), expected: object.version.to_string() };
    match answer.status {
        StatusCode::NOT_FOUND if answer.message.contains("bucket does not exist") => SourceError::NotFound {
            what: format!("gs://{}", uri.authority()),
            remedy: "there is no such bucket any more".to_owned(),
        },
        // Ranges lie within the object as it was listed, so one that cannot be had means a shorter one.
        StatusCode::NOT_FOUND | StatusCode::PRECONDITION_FAILED | StatusCode::RANGE_NOT_SATISFIABLE => {
            changed()
        }
        _ => forbidden(&answer, what, "grant roles/storage.objectViewer on the bucket", false)
            .or_else(|| answer.transient(what))
            .unwrap_or_else(|| answer.unexpected(what)),
    }
}

/// What an origin answers to someone who writes.
pub(super) fn of_writing(answer: &Answer, uri: &SourceUri, settings: &GcsSettings) -> SourceError {
    let what = uri.to_string();
    match answer.status {
        StatusCode::NOT_FOUND => {
            let what = format!("gs://{}", uri.authority());
            let remedy = "there is no such bucket: check its name, or make it".to_owned();
            SourceError::NotFound { what, remedy }
        }
        StatusCode::PRECONDITION_FAILED => SourceError::Refused {
            what,
            why: "was written by someone else meanwhile".to_owned(),
            remedy: "build it again, or write another object".to_owned(),
        },
        _ => forbidden(answer, &what, "grant roles/storage.objectUser on the bucket", settings.anonymous)
            .or_else(|| answer.transient(&what))
            .unwrap_or_else(|| answer.unexpected(&what)),
    }
}

/// The HTTP answer within an error of the library.
fn answered(error: &StorageError) -> Option<Answer> {
    let status = StatusCode::from_u16(error.http_status_code()?).ok()?;
    let none = HeaderMap::new();
    let headers = error.http_headers().unwrap_or(&none);
    let mut answer = Answer::new(status, headers, error.http_payload().map_or(&[][..], |body| body));
    // An error document in Google's own form was parsed by the library, and its text is not kept.
    if let Some(status) = error.status() {
        answer.message.clone_from(&status.message);
    }
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_error(status: u16, body: &'static str) -> SourceError {
        let error = StorageError::http(status, HeaderMap::new(), body.into());
        let uri: SourceUri = "gs://b/m".parse().unwrap();
        let object = crate::Listed::new(
            &uri,
            "a".to_owned(),
            1,
            weightd_types::Version::Generation(1),
            weightd_types::Checksums::default(),
        );
        of_read(&error, &uri, "gs://b/m/a", object.object().unwrap())
    }

    #[test]
    fn each_answer_to_a_read_has_its_error() {
        for (status, kind) in [
            (401, "unauthenticated"),
            (403, "denied"),
            (404, "changed"),
            (412, "changed"),
            (416, "changed"),
            (418, "protocol"),
            (429, "throttled"),
            (500, "unavailable"),
            (503, "unavailable"),
        ] {
            assert_eq!(read_error(status, "").kind(), kind, "{status}");
        }
        let gone = r#"{"error":{"message":"The specified bucket does not exist."}}"#;
        assert_eq!(read_error(404, gone).kind(), "not_found");
        let pays = "Bucket is a requester pays bucket but no user project provided.";
        assert!(read_error(400, pays).to_string().contains("source.gcs.user_project"));
    }
}
