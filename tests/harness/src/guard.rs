//! Who may read a bucket: a token service that gives access tokens for service accounts' tokens, and a gate before the
//! emulator of Cloud Storage, which lets everybody in, that looks at them and answers as Google does.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{HeaderMap, Response, StatusCode, header},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::{
    serve::{self, Serving},
    upstream::{self, Upstream},
};

/// Most of a request to the token service.
const FORM_BYTES: usize = 64 << 10;

/// Both, running.
#[derive(Debug)]
pub struct Guard {
    tokens: Serving,
    gate: Serving,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    upstream: Upstream,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Access tokens: whose, and until when.
    given: BTreeMap<String, (String, Instant)>,
    /// Subjects, and the buckets they may read.
    grants: BTreeSet<(String, String)>,
    /// Buckets that everybody may read.
    open: BTreeSet<String>,
    life: Duration,
    is_gate_down: bool,
    are_tokens_down: bool,
    are_tokens_refused: bool,
    exchanges: u64,
    asked: Vec<String>,
}

impl Guard {
    /// Starts both before an emulator. Nobody may read anything yet.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(upstream: &str) -> Result<Self> {
        Self::start_at(Ipv4Addr::LOCALHOST.into(), upstream).await
    }

    /// The same on another of this machine's addresses than loopback.
    ///
    /// # Errors
    /// When no port can be bound there.
    pub async fn start_at(address: IpAddr, upstream: &str) -> Result<Self> {
        let state = State {
            given: BTreeMap::new(),
            grants: BTreeSet::new(),
            open: BTreeSet::new(),
            life: Duration::from_secs(3600),
            is_gate_down: false,
            are_tokens_down: false,
            are_tokens_refused: false,
            exchanges: 0,
            asked: Vec::new(),
        };
        let shared = Arc::new(Shared { upstream: Upstream::new(upstream)?, state: Mutex::new(state) });
        let (tokens, gate) = (Arc::clone(&shared), Arc::clone(&shared));
        let tokens =
            Router::new().fallback(move |request: Request| async move { tokens.exchange(request).await });
        let gate = Router::new().fallback(move |request: Request| async move { gate.pass(request).await });
        let tokens = Serving::start_at(address, tokens).await?;
        Ok(Self { tokens, gate: Serving::start_at(address, gate).await?, shared })
    }

    /// Where tokens are exchanged.
    pub fn token_url(&self) -> String {
        format!("{}/v1/token", self.tokens.url())
    }

    /// Where the bucket is read.
    pub fn url(&self) -> String {
        self.gate.url()
    }

    /// Lets a subject read a bucket.
    pub fn grant(&self, subject: &str, bucket: &str) {
        self.state().grants.insert((subject.to_owned(), bucket.to_owned()));
    }

    /// Lets everybody read a bucket.
    pub fn open(&self, bucket: &str) {
        self.state().open.insert(bucket.to_owned());
    }

    /// Lets a subject read it no longer.
    pub fn revoke(&self, subject: &str, bucket: &str) {
        self.state().grants.remove(&(subject.to_owned(), bucket.to_owned()));
    }

    /// How long access tokens last that are given from now on.
    pub fn set_life(&self, life: Duration) {
        self.state().life = life;
    }

    /// Whether the bucket answers 503.
    pub fn set_gate_down(&self, is_down: bool) {
        self.state().is_gate_down = is_down;
    }

    /// Whether the token service answers 503.
    pub fn set_tokens_down(&self, is_down: bool) {
        self.state().are_tokens_down = is_down;
    }

    /// Whether no token is taken, as by a pool that does not know the cluster.
    pub fn set_tokens_refused(&self, are_refused: bool) {
        self.state().are_tokens_refused = are_refused;
    }

    /// Exchanges so far.
    pub fn exchanges(&self) -> u64 {
        self.state().exchanges
    }

    /// Who asked the bucket for something, in order: a subject, `anonymous`, or `expired`.
    pub fn asked(&self) -> Vec<String> {
        self.state().asked.clone()
    }

    /// Forgets who asked.
    pub fn forget(&self) {
        self.state().asked.clear();
    }

    /// Access tokens that were given.
    pub fn given(&self) -> Vec<String> {
        self.state().given.keys().cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}

/// A token of a service account as kubelet brings it, but for its signature. No two are the same.
pub fn service_account_token(namespace: &str, name: &str) -> String {
    subject_token(&format!("system:serviceaccount:{namespace}:{name}"))
}

/// A token of any subject.
pub fn subject_token(subject: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let encoded = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let claims = json!({"sub": subject, "exp": now.as_secs() + 3600, "jti": now.as_nanos().to_string()});
    format!("{}.{}.unsigned", encoded(&json!({"alg": "none"})), encoded(&claims))
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn exchange(&self, request: Request) -> Response<Body> {
        let form = axum::body::to_bytes(request.into_body(), FORM_BYTES).await.unwrap_or_default();
        let mut state = self.state();
        if state.are_tokens_down {
            return answer(StatusCode::SERVICE_UNAVAILABLE, &json!({"error": "unavailable"}));
        }
        let subject = subject(&String::from_utf8_lossy(&form)).filter(|_| !state.are_tokens_refused);
        let Some(subject) = subject else {
            let body =
                json!({"error": "invalid_grant", "error_description": "The subject token is not one."});
            return answer(StatusCode::BAD_REQUEST, &body);
        };
        state.exchanges += 1;
        let token = format!("access-token-{}-of-{}", state.exchanges, subject.replace(':', "-"));
        let life = state.life;
        state.given.insert(token.clone(), (subject, Instant::now() + life));
        let body = json!({
            "access_token": token, "expires_in": life.as_secs(), "token_type": "Bearer",
            "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
        });
        answer(StatusCode::OK, &body)
    }

    async fn pass(&self, mut request: Request) -> Response<Body> {
        if let Some(refusal) = self.refusal(&request) {
            return refusal;
        }
        request.headers_mut().remove(header::AUTHORIZATION);
        match self.upstream.ask(request).await {
            Err(error) => serve::plain(StatusCode::BAD_GATEWAY, &error.to_string()),
            Ok(found) => upstream::head(&found).map(|()| Body::from_stream(found.bytes_stream())),
        }
    }

    fn refusal(&self, request: &Request) -> Option<Response<Body>> {
        let mut state = self.state();
        let who = state.who(request.headers());
        state.asked.push(who.clone());
        if state.is_gate_down {
            return Some(google(StatusCode::SERVICE_UNAVAILABLE, "backendError", "Backend Error"));
        }
        if who == "expired" {
            return Some(google(StatusCode::UNAUTHORIZED, "authError", "Invalid Credentials"));
        }
        let bucket = bucket(request.uri().path());
        if state.open.contains(&bucket) || state.grants.contains(&(who.clone(), bucket)) {
            return None;
        }
        let what = if request.uri().path().ends_with("/o") { "list" } else { "get" };
        let caller = if who == "anonymous" { "Anonymous caller" } else { &who };
        let message = format!(
            "{caller} does not have storage.objects.{what} access to the Google Cloud Storage bucket."
        );
        let status = if who == "anonymous" { StatusCode::UNAUTHORIZED } else { StatusCode::FORBIDDEN };
        Some(google(status, if who == "anonymous" { "required" } else { "forbidden" }, &message))
    }
}

impl State {
    fn who(&self, headers: &HeaderMap) -> String {
        let sent = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some(token) = sent.and_then(|value| value.strip_prefix("Bearer ")) else {
            return "anonymous".to_owned();
        };
        match self.given.get(token) {
            Some((subject, ends)) if *ends > Instant::now() => subject.clone(),
            _ => "expired".to_owned(),
        }
    }
}

/// Whose the token is in a form.
fn subject(form: &str) -> Option<String> {
    let token = form.split('&').find_map(|pair| pair.strip_prefix("subject_token="))?;
    let token = percent_encoding::percent_decode_str(token).decode_utf8().ok()?;
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    Some(serde_json::from_slice::<Value>(&claims).ok()?["sub"].as_str()?.to_owned())
}

/// The bucket of `/storage/v1/b/BUCKET/…`.
fn bucket(path: &str) -> String {
    let mut parts = path.split('/').skip_while(|part| *part != "b");
    parts.nth(1).unwrap_or_default().to_owned()
}

fn google(status: StatusCode, reason: &str, message: &str) -> Response<Body> {
    let error = json!({
        "code": status.as_u16(), "message": message,
        "errors": [{"message": message, "domain": "global", "reason": reason}],
    });
    answer(status, &json!({ "error": error }))
}

fn answer(status: StatusCode, body: &Value) -> Response<Body> {
    let mut answer = Response::new(Body::from(body.to_string()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    answer
}
