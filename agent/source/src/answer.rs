//! What HTTP origins answer when they do not give what was asked, and how transports fail.

use std::{error::Error, time::Duration};

use http::{HeaderMap, StatusCode, header::RETRY_AFTER};
use serde_json::Value;

use crate::SourceError;

/// Most of an error's body that is read: enough for any message, and no way to fill memory.
pub(crate) const BODY_BYTES: usize = 64 << 10;
/// Most of a body that is no known error document that is shown.
const SHOWN_CHARS: usize = 200;

/// An HTTP answer other than success.
#[derive(Debug, Clone, thiserror::Error)]
#[error("HTTP {}: {message}", status.as_u16())]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// The origin's own word for what is wrong: `NoSuchBucket`, `GatedRepo`.
    pub(crate) code: Option<String>,
    pub(crate) message: String,
    pub(crate) retry_after: Option<Duration>,
}

impl Answer {
    pub(crate) fn new(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        let (code, message) = document(&text);
        let header = |name: &str| headers.get(name)?.to_str().ok().map(str::to_owned);
        let message = header("x-error-message").or(message).unwrap_or_else(|| shown(&text, status));
        let code = header("x-error-code").or(code);
        Self { status, code, message, retry_after: retry_after(headers) }
    }

    /// Reads the answer of a request that was not a success.
    pub(crate) async fn read(mut response: reqwest::Response) -> Self {
        let mut body = Vec::new();
        while let Ok(Some(piece)) = response.chunk().await {
            body.extend_from_slice(&piece);
            if body.len() > BODY_BYTES {
                break;
            }
        }
        Self::new(response.status(), response.headers(), &body)
    }

    /// The error of an answer that means "later", whatever the origin.
    pub(crate) fn transient(&self, what: &str) -> Option<SourceError> {
        let what = what.to_owned();
        let slow_down = matches!(
            self.code.as_deref(),
            Some("SlowDown" | "ServerBusy" | "rateLimitExceeded" | "userRateLimitExceeded" | "quotaExceeded")
        );
        if self.status == StatusCode::TOO_MANY_REQUESTS || slow_down {
            let (detail, retry_after) = (self.to_string(), self.retry_after);
            return Some(SourceError::Throttled { what, detail, retry_after });
        }
        let later = self.status.is_server_error() || self.status == StatusCode::REQUEST_TIMEOUT;
        later.then(|| SourceError::Unavailable {
            what,
            cause: self.to_string().into(),
            retry_after: self.retry_after,
        })
    }

    /// The error of an answer that this kind of origin should not give.
    pub(crate) fn unexpected(&self, what: &str) -> SourceError {
        SourceError::Protocol { what: what.to_owned(), detail: self.to_string() }
    }
}

/// Code and message of the error documents of Google (JSON), Amazon and Microsoft (XML) and the hub (JSON).
fn document(text: &str) -> (Option<String>, Option<String>) {
    let string = |value: &Value| value.as_str().map(str::to_owned);
    if let Ok(json) = serde_json::from_str::<Value>(text) {
        let error = &json["error"];
        let message = string(&error["message"]).or_else(|| string(error));
        return (string(&error["errors"][0]["reason"]), message);
    }
    (element(text, "Code"), element(text, "Message"))
}

/// The text of an XML element. Error documents are flat, so finding the tags is enough.
fn element(text: &str, name: &str) -> Option<String> {
    let (_, after) = text.split_once(&format!("<{name}>"))?;
    let (content, _) = after.split_once(&format!("</{name}>"))?;
    Some(content.trim().replace(['\r', '\n'], " "))
}

fn shown(text: &str, status: StatusCode) -> String {
    let is_page = text.trim_start().starts_with('<');
    let text: String = text.trim().chars().filter(|c| !c.is_control()).take(SHOWN_CHARS).collect();
    if text.is_empty() || is_page {
        return status.canonical_reason().unwrap_or("no reason given").to_owned();
    }
    text
}

/// `Retry-After`, in seconds or as a date.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    // A date that has passed means "now".
    Some(date.duration_since(std::time::SystemTime::now()).unwrap_or_default())
}

/// An error and what caused it, in one line: transports keep the useful part at the end of the chain.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

/// The first error of that type among an error and its causes.
pub(crate) fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

/// The error of a request that got no answer.
pub(crate) fn no_answer(what: &str, error: &(dyn Error + 'static)) -> SourceError {
    let (what, text) = (what.to_owned(), chain(error));
    if text.contains("invalid peer certificate") {
        let why = format!("{text}; set SSL_CERT_FILE to a PEM file with the authority that signed it");
        return SourceError::Configuration { what, why };
    }
    SourceError::Unavailable { what, cause: text.into(), retry_after: None }
}

/// The error of a body that broke off.
pub(crate) fn broke_off(what: &str, error: &(dyn Error + 'static)) -> SourceError {
    SourceError::Interrupted { what: what.to_owned(), cause: chain(error).into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, headers: &[(&'static str, &str)], body: &str) -> Answer {
        let headers =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        Answer::new(StatusCode::from_u16(status).unwrap(), &headers, body.as_bytes())
    }

    #[test]
    fn the_message_of_each_cloud_is_found() {
        let google =
            r#"{"error":{"code":403,"message":"me lacks access","errors":[{"reason":"forbidden"}]}}"#;
        let amazon = "<?xml version=\"1.0\"?><Error><Code>NoSuchBucket</Code><Message>gone</Message></Error>";
        let hub = r#"{"error":"Invalid username or password."}"#;
        assert_eq!(answer(403, &[], google).message, "me lacks access");
        assert_eq!(answer(403, &[], google).code.as_deref(), Some("forbidden"));
        assert_eq!(answer(404, &[], amazon).code.as_deref(), Some("NoSuchBucket"));
        assert_eq!(answer(401, &[], hub).message, "Invalid username or password.");
        assert_eq!(answer(404, &[("x-error-code", "GatedRepo")], "").code.as_deref(), Some("GatedRepo"));
        assert_eq!(answer(502, &[], "<html>proxy</html>").to_string(), "HTTP 502: Bad Gateway");
    }

    #[test]
    fn later_is_told_from_never_and_how_long_is_kept() {
        let error = answer(429, &[("retry-after", "7")], "").transient("o").unwrap();
        assert_eq!((error.kind(), error.retry_after()), ("throttled", Some(Duration::from_secs(7))));
        let error = answer(503, &[], "<Error><Code>SlowDown</Code></Error>").transient("o").unwrap();
        assert_eq!(error.kind(), "throttled");
        let past = [("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")];
        let error = answer(503, &past, "").transient("o").unwrap();
        assert_eq!((error.kind(), error.retry_after()), ("unavailable", Some(Duration::ZERO)));
        assert!(answer(404, &[], "").transient("o").is_none());
    }

    #[test]
    fn any_bytes_are_an_answer_without_a_panic() {
        bolero::check!().with_type::<(Vec<u8>, Vec<u8>)>().for_each(|(body, wait)| {
            let mut headers = HeaderMap::new();
            if let Ok(wait) = http::HeaderValue::from_bytes(wait) {
                headers.insert(RETRY_AFTER, wait);
            }
            let answer = Answer::new(StatusCode::FORBIDDEN, &headers, body);
            assert!(!answer.to_string().is_empty());
        });
    }
}
