//! A server that answers whatever a test says: what no real one would.

use std::sync::Arc;

use anyhow::Result;
use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{Response, header},
};
use bytes::Bytes;
use futures::{StreamExt, stream};

use crate::serve::Serving;

/// One answer.
#[derive(Debug, Clone, Default)]
pub struct Scripted {
    /// What it says.
    pub body: String,
    /// Whether blanks follow it for ever.
    pub endless: bool,
    /// Its `Link` header.
    pub link: Option<String>,
}

/// A running server.
#[derive(Debug)]
pub struct ScriptedServer {
    serving: Serving,
}

impl ScriptedServer {
    /// Starts one that answers a request for a path and query with what `answer` gives.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(answer: impl Fn(&str) -> Scripted + Send + Sync + 'static) -> Result<Self> {
        let answer = Arc::new(answer);
        let routes = Router::new().fallback(move |request: Request| async move {
            let target = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
            response(answer(&target))
        });
        Ok(Self { serving: Serving::start(routes).await? })
    }

    /// Scheme, host and port.
    pub fn url(&self) -> String {
        self.serving.url()
    }
}

fn response(scripted: Scripted) -> Response<Body> {
    let Scripted { body, endless, link } = scripted;
    let blanks = Bytes::from_static(&[b' '; 1 << 16]);
    let after = stream::repeat(blanks).take(if endless { usize::MAX } else { 0 });
    let pieces = stream::iter([Bytes::from(body)]).chain(after);
    let mut response = Response::new(Body::from_stream(pieces.map(Ok::<_, std::io::Error>)));
    if let Some(link) = link.and_then(|link| link.parse().ok()) {
        response.headers_mut().insert(header::LINK, link);
    }
    response
}
