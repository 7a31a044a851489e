//! `gs://`: Cloud Storage.
//!
//! Bytes come through `google-cloud-storage` with its retries and its resuming switched off, because the fetch
//! room does both for all origins alike. Listings go straight to the JSON API: the library lists over gRPC, which
//! emulators do not speak. So do uploads: the library leaves out what was on its way when a connection broke
//! (<https://github.com/googleapis/google-cloud-rust/issues/6685>).

mod error;
mod listing;
mod session;
mod token;
mod upload;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use async_trait::async_trait;
use futures::{StreamExt, stream};
use google_cloud_auth::credentials::{self, CacheableResource, Credentials};
use google_cloud_gax::retry_policy::NeverRetry;
use google_cloud_storage::{
    client::Storage, model_ext::ReadRange, read_object::ReadObjectResponse, read_resume_policy::NeverResume,
};
use http::{Extensions, HeaderMap, HeaderValue};
use tokio::{
    sync::OnceCell,
    time::{Duration, timeout},
};
use url::Url;
use weightd_types::{ByteRange, Object, SourceUri, Version};

use crate::{
    ByteStream, Credential, Listed, Source, SourceError,
    answer::{broke_off, chain},
    config::{GcsSettings, Settings},
};

pub use upload::Upload;

const ENDPOINT: &str = "https://storage.googleapis.com/";

/// How long an access token is waited for.
const TOKEN_WAIT: Duration = Duration::from_mins(1);

/// Connections and credentials, shared by all `gs://` sources of one identity.
#[derive(Debug)]
pub(crate) struct GcsClient {
    /// Made when first something is read: whoever only lists needs no connections of its own.
    storage: OnceCell<Storage>,
    web: reqwest::Client,
    endpoint: Url,
    credentials: Credentials,
    settings: GcsSettings,
    is_stale: AtomicBool,
}

impl GcsClient {
    /// Finds credentials; `what` is named in errors. Nothing is sent yet.
    pub(crate) fn new(
        settings: &Settings,
        what: &SourceUri,
        credential: &Credential,
        web: reqwest::Client,
    ) -> Result<Self, SourceError> {
        let mut settings = settings.gcs.clone();
        let credentials = match credential {
            Credential::Google(token) => token::credentials(token, &what.to_string())?,
            Credential::Node if !settings.anonymous => {
                let failed = |error| error::no_credentials(&what.to_string(), &chain(&error));
                credentials::Builder::default().build().map_err(failed)?
            }
            _ => credentials::anonymous::Builder::new().build(),
        };
        settings.anonymous &= *credential == Credential::Node;
        let endpoint = settings.endpoint.clone().map_or_else(|| Url::parse(ENDPOINT), Ok);
        let endpoint = endpoint
            .map_err(|error| SourceError::Protocol { what: what.to_string(), detail: error.to_string() })?;
        let (storage, is_stale) = (OnceCell::new(), AtomicBool::new(false));
        Ok(Self { storage, web, endpoint, credentials, settings, is_stale })
    }

    /// What reads objects; `what` is named in errors.
    async fn storage(&self, what: &str) -> Result<&Storage, SourceError> {
        let make = async || {
            let mut builder = Storage::builder()
                .with_credentials(self.credentials.clone())
                .with_retry_policy(NeverRetry)
                .with_read_resume_policy(NeverResume);
            if let Some(endpoint) = &self.settings.endpoint {
                builder = builder.with_endpoint(endpoint.as_str().trim_end_matches('/'));
            }
            let failed = |error| SourceError::Configuration { what: what.to_owned(), why: chain(&error) };
            builder.build().await.map_err(failed)
        };
        self.storage.get_or_try_init(make).await
    }

    /// Where something of the JSON API is: parts, each escaped.
    fn url(&self, parts: &[&str]) -> Url {
        let mut url = self.endpoint.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(parts);
        }
        url
    }

    /// What a request to the JSON API says of who asks, and who pays.
    async fn headers(&self, what: &str) -> Result<HeaderMap, SourceError> {
        let failed = |error| error::of_credentials(&error, what);
        let silent = |_| SourceError::Unavailable {
            what: what.to_owned(),
            cause: format!("no access token came for {} seconds", TOKEN_WAIT.as_secs()).into(),
            retry_after: None,
        };
        // The library waits for whoever gives tokens as long as that one says nothing.
        let found = timeout(TOKEN_WAIT, self.credentials.headers(Extensions::new())).await.map_err(silent)?;
        let mut headers = match found.map_err(failed)? {
            CacheableResource::New { data, .. } => data,
            CacheableResource::NotModified => HeaderMap::new(),
        };
        if let Some(project) = &self.settings.user_project {
            let invalid = |_| SourceError::Configuration {
                what: "source.gcs.user_project".to_owned(),
                why: format!("{project:?} is not a project"),
            };
            headers.insert("x-goog-user-project", HeaderValue::from_str(project).map_err(invalid)?);
        }
        Ok(headers)
    }

    /// Whether the credentials failed for good. The library never asks again after such a failure, so new
    /// sources need new credentials: a metadata server that was not up yet must not break the agent for ever.
    pub(crate) fn is_stale(&self) -> bool {
        self.is_stale.load(Relaxed)
    }

    fn noting_stale(&self, error: SourceError) -> SourceError {
        if matches!(error, SourceError::Unauthenticated { .. }) {
            self.is_stale.store(true, Relaxed);
        }
        error
    }
}

/// A prefix of a bucket.
#[derive(Debug)]
pub struct GcsSource {
    client: Arc<GcsClient>,
    uri: SourceUri,
}

impl GcsSource {
    pub(crate) fn new(client: Arc<GcsClient>, uri: SourceUri) -> Self {
        Self { client, uri }
    }

    fn generation(&self, object: &Object) -> Result<i64, SourceError> {
        match &object.version {
            Version::Generation(generation) => Ok(*generation),
            Version::Etag(_) | Version::Git { .. } => Err(SourceError::Protocol {
                what: self.uri.object_url(&object.path),
                detail: format!("{} is not a version of Cloud Storage", object.version),
            }),
        }
    }
}

#[async_trait]
impl Source for GcsSource {
    async fn list(&self) -> Result<Vec<Listed>, SourceError> {
        listing::list(&self.client, &self.uri).await.map_err(|error| self.client.noting_stale(error))
    }

    async fn read(&self, object: &Object, range: ByteRange) -> Result<ByteStream, SourceError> {
        let generation = self.generation(object)?;
        let what = self.uri.object_url(&object.path);
        let bucket = format!("projects/_/buckets/{}", self.uri.authority());
        let storage = self.client.storage(&what).await?;
        let mut request = storage
            .read_object(bucket, self.uri.object_key(&object.path))
            .set_generation(generation)
            .set_read_range(ReadRange::segment(range.start, range.len()));
        if let Some(project) = &self.client.settings.user_project {
            request = request.with_quota_project(project);
        }
        let failed = |error| error::of_read(&error, &self.uri, &what, object);
        let response = request.send().await.map_err(failed).map_err(|e| self.client.noting_stale(e))?;
        // Emulators that do not keep old generations answer with the newest instead of 404.
        if response.object().generation != generation {
            return Err(SourceError::Changed { what, expected: object.version.to_string() });
        }
        Ok(body(response, what))
    }
}

fn body(response: ReadObjectResponse, what: String) -> ByteStream {
    stream::unfold(Some((response, what)), |state| async move {
        let (mut response, what) = state?;
        match response.next().await? {
            Ok(bytes) => Some((Ok(bytes), Some((response, what)))),
            Err(error) => Some((Err(broke_off(&what, &error)), None)),
        }
    })
    .boxed()
}
