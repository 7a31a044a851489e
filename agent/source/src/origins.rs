//! The opener of real origins.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use async_trait::async_trait;
use tokio::sync::Mutex;
use weightd_types::{Scheme, SourceUri};

use crate::{
    MemoryOrigin, Opener, Source, SourceError,
    config::Settings,
    gcs::{GcsClient, GcsSource},
};

/// Opens sources of every scheme. Clients are made when they are first needed, and shared from then on.
#[derive(Debug)]
pub struct Origins {
    settings: Settings,
    memory: RwLock<BTreeMap<String, MemoryOrigin>>,
    gcs: Mutex<Option<Arc<GcsClient>>>,
}

impl Origins {
    /// Origins as configured. Nothing is opened yet.
    pub fn new(settings: Settings) -> Self {
        Self { settings, memory: RwLock::default(), gcs: Mutex::default() }
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
        match uri.scheme() {
            Scheme::Gs => Ok(Arc::new(GcsSource::new(self.gcs(uri).await?, uri.clone()))),
            Scheme::Memory => self.memory(uri).await,
            _ => Err(SourceError::Configuration { what: uri.to_string(), why: "not yet".to_owned() }),
        }
    }
}
