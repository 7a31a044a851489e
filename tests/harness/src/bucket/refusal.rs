//! Why a request is not done, in the words and forms of Cloud Storage.

use std::io;

use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
};
use serde_json::json;

/// A reason not to do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("The specified bucket does not exist.")]
    NoBucket,
    #[error("No such object: {0}")]
    NoObject(String),
    #[error("There is nothing at this path, or not for this method.")]
    NotOffered,
    #[error("There is no such upload.")]
    NoUpload,
    #[error("Your previous request to create the named bucket succeeded and you already own it.")]
    BucketExists,
    #[error("At least one of the pre-conditions you specified did not hold.")]
    Precondition,
    #[error("Not modified")]
    NotModified,
    #[error("Request range not satisfiable")]
    Unsatisfiable {
        /// Length of the object in bytes.
        length: usize,
    },
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Failed(String),
}

/// In which form a refusal is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Json,
    Xml,
}

impl Refusal {
    pub(super) fn invalid(why: impl Into<String>) -> Self {
        Self::Invalid(why.into())
    }

    /// Something that this machine could not do.
    pub(super) fn failed(error: &io::Error) -> Self {
        Self::Failed(error.to_string())
    }

    /// The answer that says so.
    pub(super) fn answer(&self, form: Form) -> Response<Body> {
        let status = self.status();
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = status;
        if let Self::Unsatisfiable { length } = self
            && let Ok(value) = format!("bytes */{length}").parse()
        {
            answer.headers_mut().insert(header::CONTENT_RANGE, value);
        }
        if status == StatusCode::NOT_MODIFIED {
            return answer;
        }
        let (kind, body) = match form {
            Form::Json => ("application/json; charset=UTF-8", self.json()),
            Form::Xml => ("application/xml; charset=UTF-8", self.xml()),
        };
        answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        *answer.body_mut() = Body::from(body);
        answer
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::NoBucket | Self::NoObject(_) | Self::NotOffered | Self::NoUpload => StatusCode::NOT_FOUND,
            Self::BucketExists => StatusCode::CONFLICT,
            Self::Precondition => StatusCode::PRECONDITION_FAILED,
            Self::NotModified => StatusCode::NOT_MODIFIED,
            Self::Unsatisfiable { .. } => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// What the two APIs call it.
    fn reasons(&self) -> (&'static str, &'static str) {
        match self {
            Self::NoBucket => ("notFound", "NoSuchBucket"),
            Self::NoObject(_) | Self::NotOffered => ("notFound", "NoSuchKey"),
            Self::NoUpload => ("notFound", "NoSuchUpload"),
            Self::BucketExists => ("conflict", "BucketAlreadyOwnedByYou"),
            Self::Precondition => ("conditionNotMet", "PreconditionFailed"),
            Self::NotModified => ("notModified", "NotModified"),
            Self::Unsatisfiable { .. } => ("requestedRangeNotSatisfiable", "InvalidRange"),
            Self::Invalid(_) => ("invalid", "InvalidArgument"),
            Self::Failed(_) => ("backendError", "InternalError"),
        }
    }

    fn json(&self) -> String {
        let message = self.to_string();
        let errors = json!([{"message": message, "domain": "global", "reason": self.reasons().0}]);
        json!({"error": {"code": self.status().as_u16(), "message": message, "errors": errors}}).to_string()
    }

    fn xml(&self) -> String {
        let message = self.to_string().replace('&', "&amp;").replace('<', "&lt;");
        format!(
            "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{}</Code><Message>{message}</Message></Error>",
            self.reasons().1
        )
    }
}
