//! What each request is answered with.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header},
};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    compose::compose,
    listing::Asked,
    object::{Stored, timestamp},
    refusal::{Form, Refusal},
    request::{Conditions, Named, Query, Target},
    session::Sessions,
    shape::Line,
    store::Store,
    upload,
};
use crate::{
    RequestLog,
    serve::{self, Wanted},
};

/// Bytes that a request to make a bucket may have.
const BUCKET_BYTES: usize = 1 << 20;

/// What all connections of a server share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) store: Store,
    pub(super) sessions: Sessions,
    /// Scheme, host and port.
    pub(super) endpoint: String,
    pub(super) first_byte: Duration,
    pub(super) log: Option<RequestLog>,
    pub(super) requests: AtomicU64,
    /// Bytes of bodies of objects.
    pub(super) sent: Arc<AtomicU64>,
}

impl Shared {
    /// Answers a request that came by a connection.
    pub(super) async fn answer(&self, request: Request, line: &Arc<Line>) -> Response<Body> {
        let target = Target::of(request.uri().path());
        if target == Some(Target::Counters) {
            return self.counters();
        }
        self.requests.fetch_add(1, Relaxed);
        if let Some(log) = &self.log {
            log.record(&request);
        }
        if !self.first_byte.is_zero() {
            sleep(self.first_byte).await;
        }
        let form = if matches!(target, Some(Target::Plain(_))) { Form::Xml } else { Form::Json };
        let is_head = request.method() == Method::HEAD;
        let answer = match target {
            None => Err(Refusal::NotOffered),
            Some(target) => self.done(target, request, line).await,
        };
        let mut answer = answer.unwrap_or_else(|refusal| refusal.answer(form));
        if is_head {
            *answer.body_mut() = Body::empty();
        }
        answer
    }

    async fn done(
        &self,
        target: Target,
        request: Request,
        line: &Arc<Line>,
    ) -> Result<Response<Body>, Refusal> {
        if let Target::Upload(bucket) = target {
            return upload::upload(self, bucket, request).await;
        }
        let query = Query::of(request.uri());
        let method = request.method().clone();
        let is_reading = matches!(method, Method::GET | Method::HEAD);
        match target {
            Target::Buckets if method == Method::POST => self.create(request).await,
            Target::Compose(named) if method == Method::POST => compose(self, named, request).await,
            Target::Object(named) if method == Method::DELETE => {
                self.delete(&named, &query, request.headers())
            }
            _ if !is_reading => Err(Refusal::NotOffered),
            Target::Buckets => Ok(self.buckets()),
            Target::Bucket(bucket) => Ok(json(&self.bucket(&bucket, self.store.created(&bucket)?))),
            Target::Layout(bucket) => self.layout(&bucket),
            Target::Objects(bucket) => self.objects(&bucket, &query),
            Target::Plain(named) => self.read(&named, &query, request.headers(), line),
            Target::Object(named) if is_download(&request, &query) => {
                self.read(&named, &query, request.headers(), line)
            }
            Target::Object(named) => {
                let stored = self.find(&named, &query, request.headers())?;
                Ok(json(&stored.resource(&self.endpoint)))
            }
            Target::Counters | Target::Compose(_) | Target::Upload(_) => Err(Refusal::NotOffered),
        }
    }

    fn counters(&self) -> Response<Body> {
        let (sent, requests) = (self.sent.load(Relaxed), self.requests.load(Relaxed));
        json(&json!({"bytes_sent": sent, "requests": requests}))
    }

    async fn create(&self, request: Request) -> Result<Response<Body>, Refusal> {
        let body = axum::body::to_bytes(request.into_body(), BUCKET_BYTES).await;
        let body = body.map_err(|error| Refusal::invalid(error.to_string()))?;
        let wanted: Value =
            serde_json::from_slice(&body).map_err(|error| Refusal::invalid(error.to_string()))?;
        let bucket = wanted["name"].as_str().ok_or_else(|| Refusal::invalid("Required: name"))?;
        self.store.create(bucket)?;
        Ok(json(&self.bucket(bucket, self.store.created(bucket)?)))
    }

    fn buckets(&self) -> Response<Body> {
        let buckets = self.store.buckets();
        let items: Vec<Value> = buckets.iter().map(|(name, created)| self.bucket(name, *created)).collect();
        json(&json!({"kind": "storage#buckets", "items": items}))
    }

    fn bucket(&self, name: &str, created: SystemTime) -> Value {
        let created = timestamp(created);
        json!({
            "kind": "storage#bucket", "id": name, "name": name, "projectNumber": "0", "metageneration": "1",
            "selfLink": format!("{}/storage/v1/b/{name}", self.endpoint), "etag": "CAE=",
            "location": "EUROPE-WEST1", "locationType": "region", "storageClass": "STANDARD",
            "timeCreated": created, "updated": created,
        })
    }

    fn layout(&self, bucket: &str) -> Result<Response<Body>, Refusal> {
        self.store.created(bucket)?;
        Ok(json(&json!({
            "kind": "storage#storageLayout", "bucket": bucket, "location": "EUROPE-WEST1",
            "locationType": "region", "hierarchicalNamespace": {"enabled": false},
        })))
    }

    fn objects(&self, bucket: &str, query: &Query) -> Result<Response<Body>, Refusal> {
        let asked = Asked::of(query)?;
        let page = self.store.look(bucket, |objects| asked.page(objects))?;
        let mut answer = json!({"kind": "storage#objects"});
        if !page.objects.is_empty() {
            answer["items"] = page.objects.iter().map(|object| object.resource(&self.endpoint)).collect();
        }
        if !page.prefixes.is_empty() {
            answer["prefixes"] = json!(page.prefixes);
        }
        if let Some(next) = page.next {
            answer["nextPageToken"] = json!(next);
        }
        Ok(json(&answer))
    }

    fn delete(&self, named: &Named, query: &Query, headers: &HeaderMap) -> Result<Response<Body>, Refusal> {
        self.store.delete(named, query.number("generation")?, &Conditions::of(query, headers)?)?;
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = StatusCode::NO_CONTENT;
        Ok(answer)
    }

    fn find(&self, named: &Named, query: &Query, headers: &HeaderMap) -> Result<Arc<Stored>, Refusal> {
        self.store.get(named, query.number("generation")?, &Conditions::of(query, headers)?)
    }

    /// The bytes of an object, or a range of them.
    fn read(
        &self,
        named: &Named,
        query: &Query,
        headers: &HeaderMap,
        line: &Arc<Line>,
    ) -> Result<Response<Body>, Refusal> {
        let stored = self.find(named, query, headers)?;
        let length = stored.content.bytes.len();
        let range = match serve::wanted(headers, length) {
            Wanted::All => None,
            Wanted::Part(range) => Some(range),
            Wanted::Nothing => return Err(Refusal::Unsatisfiable { length }),
        };
        let bytes = match &range {
            Some(range) => stored.content.bytes.slice(range.clone()),
            None => stored.content.bytes.clone(),
        };
        let mut said = stored.headers();
        said.insert(header::CONTENT_LENGTH, bytes.len().into());
        let mut answer = Response::new(line.body(bytes));
        if let Some(range) = range
            && let Ok(value) = format!("bytes {}-{}/{length}", range.start, range.end - 1).parse()
        {
            said.insert(header::CONTENT_RANGE, value);
            *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        *answer.headers_mut() = said;
        Ok(answer)
    }
}

/// Whether an object's bytes are wanted, and not what is said of it.
fn is_download(request: &Request, query: &Query) -> bool {
    query.get("alt") == Some("media") || request.uri().path().starts_with("/download/")
}

/// An answer in JSON.
pub(super) fn json(value: &Value) -> Response<Body> {
    let mut answer = Response::new(Body::from(value.to_string()));
    let kind = HeaderValue::from_static("application/json; charset=UTF-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}
