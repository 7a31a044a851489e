//! Where a redirect may lead a request that is made for a pod. A server that pods may name, or an open redirect on it,
//! must not lead the node to addresses that it reaches and pods do not; and what is secret in a request, such as a session
//! token of S3, must not travel to whatever host an answer names. The operator's own requests follow as far as they are led.

use std::sync::Arc;

use reqwest::redirect::Policy;
use url::Url;
use weightd_types::{Scheme, SourceUri};

use crate::{Credential, SourceError};

/// Most of an address that is repeated.
const SHOWN_CHARS: usize = 200;

/// A redirect that was not followed.
#[derive(Debug, thiserror::Error)]
#[error("it redirects to {to}")]
pub(crate) struct Astray {
    /// Where it led to, without what may be secret in it.
    to: String,
}

/// Whether an address is another one, or below it. Both are compared as a client would write them: without `..`, however
/// that is spelt.
pub fn is_below(above: &Url, url: &Url) -> bool {
    let rest = url.path().strip_prefix(above.path().trim_end_matches('/'));
    above.origin() == url.origin() && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Credential {
    /// Below which addresses redirects are followed; `None` for anywhere.
    pub(crate) fn redirects(&self) -> Option<Arc<[Url]>> {
        match self {
            Self::Node => None,
            Self::Web(addresses) => Some(Arc::clone(addresses)),
            Self::Anonymous | Self::Google(_) | Self::S3(_) | Self::Hub(_) | Self::Directory(_) => {
                Some(Arc::default())
            }
        }
    }
}

/// Follows within one origin, and below these addresses.
pub(crate) fn within(addresses: Arc<[Url]>) -> Policy {
    Policy::custom(move |attempt| {
        let (from, to) = (attempt.previous().last(), attempt.url());
        let stays = from.is_some_and(|from| from.origin() == to.origin());
        if stays && addresses.iter().any(|above| is_below(above, to)) {
            return Policy::default().redirect(attempt);
        }
        let to = shown(to);
        attempt.error(Astray { to })
    })
}

/// An address without user and query, which may hold what is secret.
fn shown(url: &Url) -> String {
    let text = format!("{}{}", url.origin().ascii_serialization(), url.path());
    text.chars().take(SHOWN_CHARS).collect()
}

impl Astray {
    /// As the error of a source.
    pub(crate) fn of(&self, uri: &SourceUri, what: &str) -> SourceError {
        let remedy = match uri.scheme() {
            Scheme::Http | Scheme::Https => {
                "name that address as the source, if the operator allows it in access.web, or have the server give the file \
                 itself, or answer 404 if it has none"
            }
            Scheme::S3 => {
                "if the bucket is in another region, write it as AWS_REGION into the secret that the volume's \
                 nodePublishSecretRef names, or set source.s3.region"
            }
            _ => "have the origin answer itself",
        };
        SourceError::Redirected { what: what.to_owned(), to: self.to.clone(), remedy: remedy.to_owned() }
    }
}

#[cfg(test)]
mod tests;
