//! An access token that someone else has asked for, as the library takes credentials.

use google_cloud_auth::{
    credentials::{CacheableResource, Credentials, CredentialsProvider, EntityTag},
    errors::CredentialsError,
};
use http::{Extensions, HeaderMap, HeaderValue, header::AUTHORIZATION};

use crate::{Secret, SourceError};

/// Credentials that are one token, as long as it lasts; `what` is named in errors.
pub(super) fn credentials(token: &Secret, what: &str) -> Result<Credentials, SourceError> {
    // It is not repeated: it is a secret even when it is malformed.
    let invalid = |_| SourceError::Configuration {
        what: what.to_owned(),
        why: "the access token has characters that no token has".to_owned(),
    };
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.reveal())).map_err(invalid)?;
    value.set_sensitive(true);
    let headers = HeaderMap::from_iter([(AUTHORIZATION, value)]);
    Ok(Credentials::from(Fixed { headers, tag: EntityTag::new() }))
}

/// Its value is marked as one that is not shown.
#[derive(Debug)]
struct Fixed {
    headers: HeaderMap,
    tag: EntityTag,
}

impl CredentialsProvider for Fixed {
    async fn headers(&self, known: Extensions) -> Result<CacheableResource<HeaderMap>, CredentialsError> {
        if known.get::<EntityTag>() == Some(&self.tag) {
            return Ok(CacheableResource::NotModified);
        }
        Ok(CacheableResource::New { entity_tag: self.tag.clone(), data: self.headers.clone() })
    }

    async fn universe_domain(&self) -> Option<String> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_token_is_sent_and_never_shown() {
        let credentials = credentials(&Secret::new("hunter2"), "gs://b/x").unwrap();
        let CacheableResource::New { data, .. } = credentials.headers(Extensions::new()).await.unwrap()
        else {
            panic!("nothing is known yet")
        };
        assert_eq!(data[AUTHORIZATION], "Bearer hunter2");
        assert!(!format!("{credentials:?}{data:?}").contains("hunter2"));
        let error = super::credentials(&Secret::new("hunt\ner2"), "gs://b/x").unwrap_err();
        assert!(!format!("{error}{error:?}").contains("er2"));
    }
}
