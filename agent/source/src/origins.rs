//! The opener of real origins.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use async_trait::async_trait;
use object_store::{ObjectStore, http::HttpStore};
use tokio::sync::Mutex;
use weightd_types::{Scheme, SourceUri};

use crate::{
    MemoryOrigin, Opener, Source, SourceError,
    cloud::{self, ObjectStoreSource},
    config::Settings,
    file::FileSource,
    gcs::{GcsClient, GcsSource},
    hub::{HubClient, HubSource},
    web_server::HttpSource,
};

/// Most buckets and hosts whose clients are kept. A node reads from a few; beyond this all are made anew.
const KEPT: usize = 256;

/// Opens sources of every scheme. Clients are made when they are first needed, and shared from then on.
#[derive(Debug)]
pub struct Origins {
    settings: Settings,
    memory: RwLock<BTreeMap<String, MemoryOrigin>>,
    gcs: Mutex<Option<Arc<GcsClient>>>,
    hub: Mutex<Option<Arc<HubClient>>>,
    stores: Mutex<BTreeMap<String, Arc<dyn ObjectStore>>>,
    servers: Mutex<BTreeMap<String, Arc<HttpStore>>>,
}

impl Origins {
    /// Origins as configured. Nothing is opened yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            memory: RwLock::default(),
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

    async fn gcs(&self, uri: &SourceUri) -> Result<Arc<GcsClient>, SourceError> {
        let mut shared = self.gcs.lock().await;
        if let Some(client) = shared.as_ref().filter(|client| !client.is_stale()) {
            return Ok(Arc::clone(client));
        }
        let client = Arc::new(GcsClient::new(&self.settings, uri).await?);
        *shared = Some(Arc::clone(&client));
        Ok(client)
    }

    async fn hub(&self, uri: &SourceUri) -> Result<Arc<HubClient>, SourceError> {
        let mut shared = self.hub.lock().await;
        if let Some(client) = shared.as_ref().filter(|client| !client.is_stale()) {
            return Ok(Arc::clone(client));
        }
        let client = Arc::new(HubClient::new(&self.settings, uri).await?);
        *shared = Some(Arc::clone(&client));
        Ok(client)
    }

    async fn store(&self, uri: &SourceUri) -> Result<Arc<dyn ObjectStore>, SourceError> {
        let key = root(uri);
        if let Some(store) = self.stores.lock().await.get(&key) {
            return Ok(Arc::clone(store));
        }
        // Not under the lock: asking where a bucket is may take as long as the network lets it.
        let store = cloud::open(&self.settings, uri).await?;
        Ok(keep(&mut *self.stores.lock().await, key, store))
    }

    async fn server(&self, uri: &SourceUri) -> Result<Arc<HttpStore>, SourceError> {
        let key = root(uri);
        let mut servers = self.servers.lock().await;
        if let Some(server) = servers.get(&key) {
            return Ok(Arc::clone(server));
        }
        let server = Arc::new(cloud::web(&self.settings, &key)?);
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
        let own = uri.clone();
        match uri.scheme() {
            Scheme::Gs => Ok(Arc::new(GcsSource::new(self.gcs(uri).await?, own))),
            Scheme::S3 | Scheme::Az => Ok(Arc::new(ObjectStoreSource::new(self.store(uri).await?, own))),
            Scheme::Http | Scheme::Https => Ok(Arc::new(HttpSource::new(self.server(uri).await?, own))),
            Scheme::Hf => Ok(Arc::new(HubSource::new(self.hub(uri).await?, own))),
            Scheme::File => Ok(Arc::new(FileSource::new(own))),
            Scheme::Memory => self.memory(uri).await,
        }
    }
}

/// Scheme and bucket, container or host.
fn root(uri: &SourceUri) -> String {
    format!("{}://{}", uri.scheme().as_str(), uri.authority())
}

fn keep<T: ?Sized>(kept: &mut BTreeMap<String, Arc<T>>, key: String, made: Arc<T>) -> Arc<T> {
    if kept.len() >= KEPT {
        kept.clear();
    }
    Arc::clone(kept.entry(key).or_insert(made))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, Environment};

    #[tokio::test]
    async fn memory_is_reached_only_when_it_is_registered() {
        let origins = Origins::new(Config::default().check(&Environment::default()).unwrap());
        let uri: SourceUri = "memory://m".parse().unwrap();
        assert_eq!(origins.open(&uri).await.unwrap_err().kind(), "configuration");
        origins.register(MemoryOrigin::new("m"));
        assert!(origins.open(&uri).await.is_ok());
    }
}
