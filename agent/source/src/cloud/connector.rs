//! Keeps what the library drops: the status, the message and `Retry-After` of an answer other than success.

use async_trait::async_trait;
use futures::StreamExt;
use object_store::{
    ClientOptions,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
        ReqwestConnector,
    },
};

use crate::answer::{Answer, BODY_BYTES};

/// Makes the library's own clients, and turns every answer other than success into an [`Answer`] in the chain
/// of causes. Its own errors have neither `Retry-After` nor a status that can be asked for.
#[derive(Debug, Default)]
pub(crate) struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Kept(ReqwestConnector::default().connect(options)?)))
    }
}

#[derive(Debug)]
struct Kept(HttpClient);

#[async_trait]
impl HttpService for Kept {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let response = self.0.execute(request).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let (parts, body) = response.into_parts();
        let mut pieces = body.bytes_stream();
        let mut text = Vec::new();
        while let Some(Ok(piece)) = pieces.next().await {
            text.extend_from_slice(&piece);
            if text.len() > BODY_BYTES {
                break;
            }
        }
        // A kind that the library never retries.
        Err(HttpError::new(HttpErrorKind::Unknown, Answer::new(parts.status, &parts.headers, &text)))
    }
}
