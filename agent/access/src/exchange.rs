//! A pod's token for an access token of the origin's: OAuth 2.0 token exchange (RFC 8693). The client library of Cloud
//! Storage has one of its own, which does not say when its tokens end; here everything that follows from one ends with it.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Deserialize;
use tokio::time::{Instant, timeout};
use url::{Url, form_urlencoded};
use weightd_source::{Credential, Secret, chain, http_client};
use weightd_types::SourceUri;

use crate::{AccessError, Metrics, error::line, identity::PodToken};

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// Exchanges that are remembered: one a pod, on a node of a few hundred.
const KEPT: usize = 1024;
/// Most of an answer that is read.
const ANSWER_BYTES: usize = 64 << 10;
/// No token counts for longer, whatever is said of it.
const LONGEST_LIFE: Duration = Duration::from_secs(86_400);
const SCOPE: &str = "https://www.googleapis.com/auth/devstorage.read_only";

/// What an exchange gave.
#[derive(Debug, Clone)]
pub(crate) struct Exchanged {
    pub(crate) credential: Credential,
    pub(crate) ends: Instant,
    /// From when on a new one is asked for.
    renew: Instant,
}

/// Exchanges tokens, and remembers what it got for them.
#[derive(Debug)]
pub(crate) struct Exchanger {
    endpoint: Url,
    connect_timeout: Duration,
    client: Mutex<Option<reqwest::Client>>,
    known: Mutex<HashMap<Secret, Exchanged>>,
    metrics: Metrics,
}

#[derive(Deserialize)]
struct Answer {
    access_token: String,
    expires_in: u64,
}

#[derive(Deserialize, Default)]
struct Refusal {
    #[serde(default)]
    error: String,
    #[serde(default)]
    error_description: String,
}

impl Exchanger {
    pub(crate) fn new(endpoint: Url, connect_timeout: Duration, metrics: Metrics) -> Self {
        Self { endpoint, connect_timeout, client: Mutex::default(), known: Mutex::default(), metrics }
    }

    /// An access token for a pod's token, to read `uri` with. One that will end soon is renewed where that is possible.
    pub(crate) async fn exchange(&self, pods: &PodToken, uri: &SourceUri) -> Result<Exchanged, AccessError> {
        let (token, now) = (&pods.token, Instant::now());
        let known = self.known().get(token).filter(|known| known.ends > now).cloned();
        if let Some(known) = known.as_ref().filter(|known| known.renew > now) {
            return Ok(known.clone());
        }
        match self.ask(pods, uri).await {
            Ok(exchanged) => {
                self.metrics.exchanged.inc();
                let mut all = self.known();
                all.retain(|_, known| known.ends > now);
                if all.len() >= KEPT {
                    all.clear();
                }
                all.insert(token.clone(), exchanged.clone());
                Ok(exchanged)
            }
            Err(error) if error.is_retryable() => {
                self.metrics.exchanges_failed.inc();
                known.ok_or(error)
            }
            Err(error) => {
                self.metrics.exchanges_refused.inc();
                self.known().remove(token);
                Err(error)
            }
        }
    }

    async fn ask(&self, pods: &PodToken, uri: &SourceUri) -> Result<Exchanged, AccessError> {
        let away = |why: String| AccessError::Unverified {
            what: uri.to_string(),
            principal: pods.principal.to_string(),
            why: format!("{} {why}", self.endpoint),
        };
        let asked = timeout(PATIENCE, self.send(pods, uri)).await;
        let asked = asked.map_err(|_| away(format!("gave no answer in {} s", PATIENCE.as_secs())))?;
        let (status, body) = asked.map_err(away)?;
        if status.is_server_error() || status == reqwest::StatusCode::TOO_MANY_REQUESTS {
            return Err(away(format!("answers {status}")));
        }
        if !status.is_success() {
            return Err(self.refusal(status, &body, pods, uri));
        }
        // What it sent is not repeated: it may hold a token.
        let answer: Answer =
            serde_json::from_slice(&body).map_err(|_| away("gave an answer without a token".to_owned()))?;
        let (now, life) = (Instant::now(), Duration::from_secs(answer.expires_in).min(LONGEST_LIFE));
        let lasts = now + life;
        let ends = pods.ends.map_or(lasts, |ends| ends.min(lasts));
        let credential = Credential::Google(Secret::new(&answer.access_token));
        Ok(Exchanged { credential, ends, renew: now + ends.saturating_duration_since(now).mul_f64(0.75) })
    }

    async fn send(&self, pods: &PodToken, uri: &SourceUri) -> Result<(reqwest::StatusCode, Vec<u8>), String> {
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange")
            .append_pair("audience", &pods.provider)
            .append_pair("scope", SCOPE)
            .append_pair("requested_token_type", "urn:ietf:params:oauth:token-type:access_token")
            .append_pair("subject_token_type", "urn:ietf:params:oauth:token-type:jwt")
            .append_pair("subject_token", pods.token.reveal())
            .finish();
        let request = self
            .client(uri)?
            .post(self.endpoint.clone())
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form);
        let failed = |error: reqwest::Error| format!("cannot be reached: {}", chain(&error.without_url()));
        let mut response = request.send().await.map_err(failed)?;
        let (status, mut body) = (response.status(), Vec::new());
        while let Some(piece) = response.chunk().await.map_err(failed)? {
            body.extend_from_slice(&piece);
            if body.len() > ANSWER_BYTES {
                return Err("gave an answer that is too long".to_owned());
            }
        }
        Ok((status, body))
    }

    fn client(&self, uri: &SourceUri) -> Result<reqwest::Client, String> {
        let mut shared = lock(&self.client);
        if let Some(client) = shared.as_ref() {
            return Ok(client.clone());
        }
        let client =
            http_client(self.connect_timeout, &uri.to_string()).map_err(|error| error.to_string())?;
        Ok(shared.insert(client).clone())
    }

    fn refusal(
        &self,
        status: reqwest::StatusCode,
        body: &[u8],
        pods: &PodToken,
        uri: &SourceUri,
    ) -> AccessError {
        let Refusal { error, error_description } = serde_json::from_slice(body).unwrap_or_default();
        let detail = format!("{} says {}: {error} {error_description}", self.endpoint, status.as_u16());
        AccessError::Refused {
            what: uri.to_string(),
            verdict: "refused",
            principal: pods.principal.to_string(),
            detail: line(&detail.replace(pods.token.reveal(), "…")),
            remedy: "check access.audience and access.provider in the agent's configuration, and that the pool trusts \
                     this cluster"
                .to_owned(),
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Secret, Exchanged>> {
        lock(&self.known)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
