//! Writing objects: in one request, or in several.

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header, request},
};
use bytes::Bytes;
use futures::TryStreamExt;

use super::{
    answer::{Shared, json},
    content::joined,
    multipart,
    object::Described,
    refusal::Refusal,
    request::{Conditions, Named, Query},
    session::{self, Span, Standing},
};

/// `499 Client Closed Request`: what an upload that was given up is answered with.
const CLOSED: u16 = 499;

/// How the Go library asks for 200 in the place of 308, which it would take for a redirect; and how it is told.
const NO_308: HeaderName = HeaderName::from_static("x-guploader-no-308");
const INSTEAD: HeaderName = HeaderName::from_static("x-http-status-code-override");

/// Does what is asked of the place where objects are written.
pub(super) async fn upload(
    shared: &Shared,
    bucket: String,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    let (parts, body) = request.into_parts();
    let query = Query::of(&parts.uri);
    match (&parts.method, query.get("upload_id"), query.get("uploadType")) {
        (&Method::DELETE, Some(id), _) => {
            shared.sessions.get(id)?.lock().await.cancel();
            let mut answer = Response::new(Body::empty());
            *answer.status_mut() = StatusCode::from_u16(CLOSED).unwrap_or(StatusCode::GONE);
            Ok(answer)
        }
        // Some clients send the parts of an upload by PUT, some by POST.
        (&Method::PUT | &Method::POST, Some(id), _) => resume(shared, id, &parts.headers, body).await,
        (&Method::POST, None, Some("resumable")) => begin(shared, bucket, &query, &parts, body).await,
        (&Method::POST, None, Some("multipart")) => {
            multipart(shared, bucket, &query, &parts.headers, body).await
        }
        (&Method::POST, None, Some("media")) => media(shared, bucket, &query, &parts.headers, body).await,
        _ => Err(Refusal::NotOffered),
    }
}

async fn media(
    shared: &Shared,
    bucket: String,
    query: &Query,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response<Body>, Refusal> {
    let described = Described { content_type: said(headers, &header::CONTENT_TYPE), ..Described::default() };
    let (named, described) = complete(bucket, query, described)?;
    write(shared, named, described, query, headers, pieces(body).await?).await
}

async fn multipart(
    shared: &Shared,
    bucket: String,
    query: &Query,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response<Body>, Refusal> {
    let body = joined(pieces(body).await?).map_err(|error| Refusal::failed(&error))?;
    let kind = said(headers, &header::CONTENT_TYPE).unwrap_or_default();
    let parts = multipart::parts(&body, &kind)?;
    let mut described = described(&parts.described)?;
    described.content_type = described.content_type.or(parts.content_type);
    if let Some(claimed) = &parts.claimed {
        let claimed = self::described(claimed)?;
        described.crc32c = claimed.crc32c.or(described.crc32c);
        described.md5_hash = claimed.md5_hash.or(described.md5_hash);
    }
    let (named, described) = complete(bucket, query, described)?;
    write(shared, named, described, query, headers, vec![parts.media]).await
}

/// Writes an object that came in one request.
async fn write(
    shared: &Shared,
    named: Named,
    described: Described,
    query: &Query,
    headers: &HeaderMap,
    pieces: Vec<Bytes>,
) -> Result<Response<Body>, Refusal> {
    let conditions = Conditions::of(query, headers)?;
    let mut claimed = described.claimed();
    if let Some(header) = said(headers, &GOOG_HASH) {
        claimed.add(&header);
    }
    let content = session::content(pieces, true, &claimed).await?;
    let stored = shared.store.put(&named, content, described, &conditions)?;
    Ok(json(&stored.resource(&shared.endpoint)))
}

/// The header of checksums.
const GOOG_HASH: HeaderName = HeaderName::from_static("x-goog-hash");

async fn begin(
    shared: &Shared,
    bucket: String,
    query: &Query,
    request: &request::Parts,
    body: Body,
) -> Result<Response<Body>, Refusal> {
    let body = joined(pieces(body).await?).map_err(|error| Refusal::failed(&error))?;
    let mut described = if body.is_empty() { Described::default() } else { described(&body)? };
    let kind = said(&request.headers, &HeaderName::from_static("x-upload-content-type"));
    described.content_type = described.content_type.or(kind);
    let (named, described) = complete(bucket, query, described)?;
    let conditions = Conditions::of(query, &request.headers)?;
    shared.store.check(&named, &conditions)?;
    let id = shared.sessions.begin(named, described, conditions);
    // Of the address that is listened on: not every client says in `Host` by which port it came.
    let location = format!("{}{}?uploadType=resumable&upload_id={id}", shared.endpoint, request.uri.path());
    let mut answer = Response::new(Body::empty());
    let location = location.parse().map_err(|_| Refusal::invalid("Invalid bucket name."))?;
    answer.headers_mut().insert(header::LOCATION, location);
    Ok(answer)
}

async fn resume(
    shared: &Shared,
    id: &str,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response<Body>, Refusal> {
    let span = match said(headers, &header::CONTENT_RANGE) {
        None => Span::ALL,
        Some(range) => Span::of(&range)
            .ok_or_else(|| Refusal::invalid(format!("Failed to parse Content-Range header: {range}")))?,
    };
    let session = shared.sessions.get(id)?;
    let mut session = session.lock().await;
    match session.take(span, body, said(headers, &GOOG_HASH).as_deref(), &shared.store).await? {
        Standing::Ended(stored) => Ok(json(&stored.resource(&shared.endpoint))),
        Standing::Open(length) => Ok(unfinished(length, headers)),
    }
}

/// Says how much of an upload is here.
fn unfinished(length: u64, headers: &HeaderMap) -> Response<Body> {
    let mut answer = Response::new(Body::empty());
    if headers.get(NO_308).is_some_and(|value| value == "yes") {
        answer.headers_mut().insert(INSTEAD, HeaderValue::from_static("308"));
    } else {
        *answer.status_mut() = StatusCode::PERMANENT_REDIRECT;
    }
    if let Some(last) = length.checked_sub(1)
        && let Ok(range) = format!("bytes=0-{last}").parse()
    {
        answer.headers_mut().insert(header::RANGE, range);
    }
    answer
}

/// Adds what parameters say of an object.
fn complete(bucket: String, query: &Query, mut described: Described) -> Result<(Named, Described), Refusal> {
    let name = query.get("name").map(str::to_owned).or(described.name.take());
    let name = name.ok_or_else(|| Refusal::invalid("Required object name is missing."))?;
    if let Some(encoding) = query.get("contentEncoding") {
        described.content_encoding = Some(encoding.to_owned());
    }
    Ok((Named { bucket, name }, described))
}

fn described(json: &[u8]) -> Result<Described, Refusal> {
    serde_json::from_slice(json).map_err(|error| Refusal::invalid(format!("Parse Error: {error}")))
}

async fn pieces(body: Body) -> Result<Vec<Bytes>, Refusal> {
    let pieces = body.into_data_stream().try_collect().await;
    pieces.map_err(|error| Refusal::invalid(format!("It broke off: {error}")))
}

/// What headers of a name say. Several lines are one list.
fn said(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let lines = headers.get_all(name).iter().map(HeaderValue::to_str).collect::<Result<Vec<_>, _>>().ok()?;
    (!lines.is_empty()).then(|| lines.join(","))
}
