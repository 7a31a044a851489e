//! The opener of real origins.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    sync::{Arc, PoisonError, RwLock},
};

use async_trait::async_trait;
use object_store::{ObjectStore, http::HttpStore};
use tokio::sync::Mutex;
use weightd_types::{Scheme, SourceUri};

use crate::{
    Credential, MemoryOrigin, Opener, Source, SourceError,
    cloud::{self, ObjectStoreSource},
    config::Settings,
    file::FileSource,
    gcs::{GcsClient, GcsSource, Upload},
    hub::{HubClient, HubSource},
    web,
    web_server::HttpSource,
};

/// Most identities, buckets and hosts whose clients are kept. A node reads from a few; beyond this all are made anew,
/// and clients of identities that ended are gone.
const KEPT: usize = 256;

/// Opens sources of every scheme. Clients are made when they are first needed, and shared from then on.
#[derive(Debug)]
pub struct Origins {
    settings: Settings,
    memory: RwLock<BTreeMap<String, MemoryOrigin>>,
    /// Connections of those who speak HTTP themselves: their credentials travel with each request.
    web: Mutex<Option<reqwest::Client>>,
    /// By identity.
    gcs: Mutex<HashMap<Credential, Arc<GcsClient>>>,
    hub: Mutex<HashMap<Credential, Arc<HubClient>>>,
    stores: Mutex<HashMap<(String, Credential), Arc<dyn ObjectStore>>>,
    servers: Mutex<HashMap<(String, Credential), Arc<HttpStore>>>,
}

impl Origins {
    /// Origins as configured. Nothing is opened yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            memory: RwLock::default(),
            web: Mutex::default(),
            gcs: Mutex::default(),
            hub: Mutex::default(),
            stores: Mutex::default(),
            servers: Mutex::default(),
        }
    }

    /// Makes an origin in memory reachable as `memory://NAME`.
    pub fn register(&self, origin: MemoryOrigin) {
        let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
        memory.insert(origin.name().to_owned(), origin);
    }

    /// Begins to write an object of Cloud Storage of so many bytes as the node, in the place of what is there.
    ///
    /// # Errors
    /// [`SourceError::Configuration`] for a URI of another scheme, and when the bucket cannot be asked.
    pub async fn upload(&self, uri: &SourceUri, bytes: u64) -> Result<Upload, SourceError> {
        if uri.scheme() != Scheme::Gs || uri.prefix().is_empty() {
            let why = "only objects of Cloud Storage can be written: gs://bucket/name".to_owned();
            return Err(SourceError::Configuration { what: uri.to_string(), why });
        }
        let web = web::uploading_client(self.settings.connect_timeout, &uri.to_string())?;
        Upload::begin(self.gcs(uri, &Credential::Node).await?, web, uri.clone(), bytes).await
    }

    async fn web(&self, uri: &SourceUri) -> Result<reqwest::Client, SourceError> {
        let mut shared = self.web.lock().await;
        if let Some(client) = shared.as_ref() {
            return Ok(client.clone());
        }
        let client = web::client(self.settings.connect_timeout, &uri.to_string())?;
        Ok(shared.insert(client).clone())
    }

    async fn gcs(&self, uri: &SourceUri, credential: &Credential) -> Result<Arc<GcsClient>, SourceError> {
        let web = self.web(uri).await?;
        let mut shared = self.gcs.lock().await;
        if let Some(client) = shared.get(credential).filter(|client| !client.is_stale()) {
            return Ok(Arc::clone(client));
        }
        let client = Arc::new(GcsClient::new(&self.settings, uri, credential, web)?);
        shared.remove(credential);
        Ok(keep(&mut shared, credential.clone(), client))
    }

    async fn hub(&self, uri: &SourceUri, credential: &Credential) -> Result<Arc<HubClient>, SourceError> {
        let web = self.web(uri).await?;
        let mut shared = self.hub.lock().await;
        if let Some(client) = shared.get(credential).filter(|client| !client.is_stale()) {
            return Ok(Arc::clone(client));
        }
        let client = Arc::new(HubClient::new(&self.settings, uri, credential, web).await?);
        shared.remove(credential);
        Ok(keep(&mut shared, credential.clone(), client))
    }

    async fn store(
        &self,
        uri: &SourceUri,
        credential: &Credential,
    ) -> Result<Arc<dyn ObjectStore>, SourceError> {
        let key = (root(uri), credential.clone());
        if let Some(store) = self.stores.lock().await.get(&key) {
            return Ok(Arc::clone(store));
        }
        // Not under the lock: asking where a bucket is may take as long as the network lets it.
        let store = cloud::open(&self.settings, uri, credential).await?;
        Ok(keep(&mut *self.stores.lock().await, key, store))
    }

    async fn server(&self, uri: &SourceUri, credential: &Credential) -> Result<Arc<HttpStore>, SourceError> {
        let key = (root(uri), credential.clone());
        let mut servers = self.servers.lock().await;
        if let Some(server) = servers.get(&key) {
            return Ok(Arc::clone(server));
        }
        let server = Arc::new(cloud::web(&self.settings, &key.0, credential)?);
        Ok(keep(&mut servers, key, server))
    }

    async fn memory(&self, uri: &SourceUri) -> Result<Arc<dyn Source>, SourceError> {
        let origin = self.memory.read().unwrap_or_else(PoisonError::into_inner).get(uri.authority()).cloned();
        match origin {
            Some(origin) => origin.open(uri).await,
            None => Err(SourceError::Configuration {
                what: uri.to_string(),
                why: "memory:// reaches only origins that this process has registered".to_owned(),
            }),
        }
    }
}

#[async_trait]
impl Opener for Origins {
    async fn open(&self, uri: &SourceUri) -> Result<Arc<dyn Source>, SourceError> {
        self.open_as(uri, &Credential::Node).await
    }

    async fn open_as(
        &self,
        uri: &SourceUri,
        credential: &Credential,
    ) -> Result<Arc<dyn Source>, SourceError> {
        if !takes(uri.scheme(), credential) {
            return Err(SourceError::not_taken(uri, credential));
        }
        let own = uri.clone();
        match uri.scheme() {
            Scheme::Gs => Ok(Arc::new(GcsSource::new(self.gcs(uri, credential).await?, own))),
            Scheme::S3 | Scheme::Az => {
                Ok(Arc::new(ObjectStoreSource::new(self.store(uri, credential).await?, own)))
            }
            // Nothing but the request itself goes to a web server, whoever asks.
            Scheme::Http | Scheme::Https => {
                Ok(Arc::new(HttpSource::new(self.server(uri, credential).await?, own)))
            }
            Scheme::Hf => Ok(Arc::new(HubSource::new(self.hub(uri, credential).await?, own))),
            Scheme::File => Ok(Arc::new(match credential {
                Credential::Directory(root) => FileSource::confined(own, root.clone()),
                _ => FileSource::new(own),
            })),
            Scheme::Memory => self.memory(uri).await,
        }
    }
}

/// Which credentials mean something to an origin.
fn takes(scheme: Scheme, credential: &Credential) -> bool {
    match credential {
        Credential::Node => true,
        Credential::Anonymous => scheme != Scheme::File,
        Credential::Google(_) => scheme == Scheme::Gs,
        Credential::S3(_) => scheme == Scheme::S3,
        Credential::Hub(_) => scheme == Scheme::Hf,
        Credential::Directory(_) => scheme == Scheme::File,
        Credential::Web(_) => matches!(scheme, Scheme::Http | Scheme::Https),
    }
}

/// Scheme and bucket, container or host.
fn root(uri: &SourceUri) -> String {
    format!("{}://{}", uri.scheme().as_str(), uri.authority())
}

fn keep<K: Eq + Hash, T: ?Sized>(kept: &mut HashMap<K, Arc<T>>, key: K, made: Arc<T>) -> Arc<T> {
    if kept.len() >= KEPT {
        kept.clear();
    }
    Arc::clone(kept.entry(key).or_insert(made))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, Environment, Secret};

    #[tokio::test]
    async fn memory_is_reached_only_when_it_is_registered() {
        let origins = Origins::new(Config::default().check(&Environment::default()).unwrap());
        let uri: SourceUri = "memory://m".parse().unwrap();
        assert_eq!(origins.open(&uri).await.unwrap_err().kind(), "configuration");
        origins.register(MemoryOrigin::new("m"));
        assert!(origins.open(&uri).await.is_ok());
    }

    #[tokio::test]
    async fn a_credential_goes_to_its_own_kind_of_origin_only() {
        let origins = Origins::new(Config::default().check(&Environment::default()).unwrap());
        let google = Credential::Google(Secret::new("hunter2"));
        for (uri, credential) in [
            ("s3://b/x", &google),
            ("https://h/x", &google),
            ("hf://o/n", &google),
            ("gs://b/x", &Credential::Hub(Secret::new("hunter2"))),
            ("file:///etc", &Credential::Anonymous),
            ("s3://b/x", &Credential::Web([].into())),
        ] {
            let error = origins.open_as(&uri.parse().unwrap(), credential).await.unwrap_err();
            assert_eq!(error.kind(), "configuration");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[tokio::test]
    async fn clients_are_shared_by_one_identity_and_by_no_other_and_there_are_not_ever_more() {
        let origins = Origins::new(Config::default().check(&Environment::default()).unwrap());
        let uri: SourceUri = "gs://b/x".parse().unwrap();
        let as_of = |n: usize| Credential::Google(Secret::new(&format!("token {n}")));
        let first = origins.gcs(&uri, &as_of(0)).await.unwrap();
        assert!(Arc::ptr_eq(&first, &origins.gcs(&uri, &as_of(0)).await.unwrap()));
        assert!(!Arc::ptr_eq(&first, &origins.gcs(&uri, &as_of(1)).await.unwrap()));
        for n in 0..2 * KEPT {
            origins.gcs(&uri, &as_of(n)).await.unwrap();
        }
        assert!(origins.gcs.lock().await.len() <= KEPT);
    }
}
