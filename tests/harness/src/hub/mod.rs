//! The Hugging Face hub's HTTP API, as far as its own Python client uses it to download: in this process, because no
//! package serves it.
//!
//! What matters and is easy to get wrong is kept as the real one does it: large files are answered with a redirect
//! to another origin, which must not be sent the token (this one refuses it); small files with a redirect to another
//! path; a repository that may not be seen looks missing; every error says what it is in `X-Error-Code`.

mod api;
mod repository;
mod resolve;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result};
use axum::{
    Router,
    body::Body,
    http::{HeaderMap, HeaderValue, Response, StatusCode},
    middleware,
    response::IntoResponse,
    routing::get,
};

use crate::serve::{RequestLog, Serving, plain};
pub use repository::Repository;
use repository::{History, Revision};

/// A running hub.
#[derive(Debug)]
pub struct HubServer {
    hub: Serving,
    cdn: Serving,
    state: Shared,
    api_log: RequestLog,
    cdn_log: RequestLog,
}

/// What both origins of the hub know.
#[derive(Debug, Default)]
struct State {
    repositories: BTreeMap<String, History>,
    /// Each token, and the gated and private repositories it may read.
    tokens: BTreeMap<String, BTreeSet<String>>,
    /// Entries on a page of a listing.
    page: usize,
    /// Redirects to the other origin are good for one of these.
    signature: u64,
    cdn: String,
}

type Shared = Arc<Mutex<State>>;

impl HubServer {
    /// Starts one without repositories.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start() -> Result<Self> {
        let state = Shared::new(Mutex::new(State { page: 1000, ..State::default() }));
        let (api_log, cdn_log) = (RequestLog::default(), RequestLog::default());
        let cdn = Router::new().route("/{sha256}", get(resolve::cdn)).with_state(state.clone());
        let cdn = Serving::start(logged(cdn, &cdn_log)).await?;
        locked(&state).cdn = cdn.url();
        let routes = Router::new()
            .route("/api/models/{owner}/{name}", get(api::info))
            .route("/api/models/{owner}/{name}/revision/{revision}", get(api::info_at))
            .route("/api/models/{owner}/{name}/tree/{revision}", get(api::tree))
            .route("/api/resolve-cache/models/{owner}/{name}/{commit}/{*path}", get(resolve::cached))
            .route("/{owner}/{name}/resolve/{revision}/{*path}", get(resolve::resolve))
            .with_state(state.clone());
        let hub = Serving::start(logged(routes, &api_log)).await?;
        Ok(Self { hub, cdn, state, api_log, cdn_log })
    }

    /// What a client is given, as in `HF_ENDPOINT`.
    pub fn endpoint(&self) -> String {
        self.hub.url()
    }

    /// The other origin, from which large files come.
    pub fn cdn_endpoint(&self) -> String {
        self.cdn.url()
    }

    /// Commits the files of `repository` as the head of `main` and returns the commit's id. Earlier commits stay.
    pub fn push(&self, id: &str, repository: Repository) -> String {
        locked(&self.state).repositories.entry(id.to_owned()).or_default().push(repository)
    }

    /// Gives `main`'s head another name, a tag or a branch.
    ///
    /// # Errors
    /// When there is no such repository.
    pub fn tag(&self, id: &str, tag: &str) -> Result<()> {
        let mut state = locked(&self.state);
        state.repositories.get_mut(id).context("no such repository")?.tag(tag);
        Ok(())
    }

    /// Makes a token valid, and lets it read these gated or private repositories.
    pub fn grant(&self, token: &str, repositories: &[&str]) {
        let granted = repositories.iter().map(ToString::to_string).collect();
        locked(&self.state).tokens.insert(token.to_owned(), granted);
    }

    /// Makes a token invalid.
    pub fn revoke(&self, token: &str) {
        locked(&self.state).tokens.remove(token);
    }

    /// How many entries a page of a listing has; 1000 at first.
    pub fn set_page(&self, entries: usize) {
        locked(&self.state).page = entries;
    }

    /// Makes every redirect given so far useless, as time does with the real ones.
    pub fn expire_redirects(&self) {
        locked(&self.state).signature += 1;
    }

    /// What came to the hub itself.
    pub fn requests(&self) -> &RequestLog {
        &self.api_log
    }

    /// What came to the other origin. None of these may carry `Authorization`.
    pub fn cdn_requests(&self) -> &RequestLog {
        &self.cdn_log
    }
}

impl State {
    /// The commit a request means, if its sender may see that the repository exists.
    fn find(&self, id: &str, revision: &str, headers: &HeaderMap) -> Result<Arc<Revision>, Refused> {
        let token = self.token(headers)?;
        let granted = token.is_some_and(|granted| granted.contains(id));
        let missing = || match token {
            Some(_) => error(StatusCode::NOT_FOUND, "RepoNotFound", "Repository not found"),
            // The real one does not tell strangers what is private and what is missing.
            None => error(StatusCode::UNAUTHORIZED, "RepoNotFound", "Invalid username or password."),
        };
        let history = self.repositories.get(id).ok_or_else(missing)?;
        let found = history.find(revision);
        if history.find("main").is_some_and(|head| head.private) && !granted {
            return Err(missing());
        }
        found.ok_or_else(|| error(StatusCode::NOT_FOUND, "RevisionNotFound", "Invalid rev id"))
    }

    /// Whether its sender may read files: those of gated repositories need a grant.
    fn may_read(&self, id: &str, revision: &Revision, headers: &HeaderMap) -> Result<(), Refused> {
        match self.token(headers)? {
            _ if !revision.gated => Ok(()),
            Some(granted) if granted.contains(id) => Ok(()),
            Some(_) => Err(error(StatusCode::FORBIDDEN, "GatedRepo", "Access to this model is restricted")),
            None => Err(error(StatusCode::UNAUTHORIZED, "GatedRepo", "Access to this model is restricted")),
        }
    }

    /// What the request's token grants; none without a token.
    fn token(&self, headers: &HeaderMap) -> Result<Option<&BTreeSet<String>>, Refused> {
        let Some(sent) = headers.get("authorization").and_then(|value| value.to_str().ok()) else {
            return Ok(None);
        };
        let known = sent.strip_prefix("Bearer ").and_then(|token| self.tokens.get(token));
        let invalid = || error(StatusCode::UNAUTHORIZED, "", "Invalid credentials in Authorization header");
        known.map(Some).ok_or_else(invalid)
    }
}

fn locked(state: &Shared) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn logged(routes: Router, log: &RequestLog) -> Router {
    let log = log.clone();
    routes.layer(middleware::from_fn(move |request: axum::extract::Request, next: middleware::Next| {
        log.record(&request);
        next.run(request)
    }))
}

/// An error as the hub says it.
#[derive(Debug)]
struct Refused {
    status: StatusCode,
    code: &'static str,
    message: &'static str,
}

fn error(status: StatusCode, code: &'static str, message: &'static str) -> Refused {
    Refused { status, code, message }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response<Body> {
        let mut answer = plain(self.status, self.message);
        if !self.code.is_empty() {
            answer.headers_mut().insert("x-error-code", HeaderValue::from_static(self.code));
        }
        answer.headers_mut().insert("x-error-message", HeaderValue::from_static(self.message));
        answer
    }
}

#[cfg(test)]
mod tests;
