//! Faults on purpose: a wrapper over any source that spoils what passes, by a plan that can be repeated.

mod body;
mod plan;

use std::sync::Arc;

use async_trait::async_trait;
use weightd_types::{ByteRange, Object, SourceUri};

pub use self::plan::{Fault, Faults, Rule};
use crate::{ByteStream, Credential, Listed, Opener, Source, SourceError};

/// An opener whose sources are all spoiled by one plan.
#[derive(Debug, Clone)]
pub struct FaultyOpener {
    inner: Arc<dyn Opener>,
    faults: Faults,
}

impl FaultyOpener {
    /// Wraps an opener.
    pub fn new(inner: Arc<dyn Opener>, faults: Faults) -> Self {
        Self { inner, faults }
    }
}

#[async_trait]
impl Opener for FaultyOpener {
    async fn open(&self, uri: &SourceUri) -> Result<Arc<dyn Source>, SourceError> {
        let inner = self.inner.open(uri).await?;
        Ok(Arc::new(FaultySource::new(inner, uri.clone(), self.faults.clone())))
    }

    async fn open_as(
        &self,
        uri: &SourceUri,
        credential: &Credential,
    ) -> Result<Arc<dyn Source>, SourceError> {
        let inner = self.inner.open_as(uri, credential).await?;
        Ok(Arc::new(FaultySource::new(inner, uri.clone(), self.faults.clone())))
    }
}

/// A source that is spoiled by a plan.
#[derive(Debug)]
pub struct FaultySource {
    inner: Arc<dyn Source>,
    uri: SourceUri,
    faults: Faults,
}

impl FaultySource {
    /// Wraps a source of a URI, which its errors name.
    pub fn new(inner: Arc<dyn Source>, uri: SourceUri, faults: Faults) -> Self {
        Self { inner, uri, faults }
    }
}

#[async_trait]
impl Source for FaultySource {
    async fn list(&self) -> Result<Vec<Listed>, SourceError> {
        for fault in self.faults.of_list() {
            before(&fault, &self.uri.to_string(), "the version listed").await?;
        }
        self.inner.list().await
    }

    async fn read(&self, object: &Object, range: ByteRange) -> Result<ByteStream, SourceError> {
        let what = self.uri.object_url(&object.path);
        let faults = self.faults.of_read(object.path.as_str(), range);
        for fault in &faults {
            before(fault, &what, &object.version.to_string()).await?;
        }
        let stream = self.inner.read(object, range).await?;
        Ok(faults.into_iter().fold(stream, |stream, fault| body::spoil(stream, range, fault, &what)))
    }
}

/// The faults that come before the first byte.
async fn before(fault: &Fault, what: &str, expected: &str) -> Result<(), SourceError> {
    let what = what.to_owned();
    match fault {
        Fault::Latency(duration) => tokio::time::sleep(*duration).await,
        Fault::Throttle { retry_after } => {
            let (detail, retry_after) = ("HTTP 429, on purpose".to_owned(), *retry_after);
            return Err(SourceError::Throttled { what, detail, retry_after });
        }
        Fault::Unavailable { retry_after } => {
            let (cause, retry_after) = ("HTTP 503, on purpose".into(), *retry_after);
            return Err(SourceError::Unavailable { what, cause, retry_after });
        }
        Fault::Changed => return Err(SourceError::Changed { what, expected: expected.to_owned() }),
        Fault::Unauthenticated => {
            let (detail, remedy) =
                ("the token has expired, on purpose".to_owned(), "get a new one".to_owned());
            return Err(SourceError::Unauthenticated { what, detail, remedy });
        }
        Fault::Reset { .. } | Fault::Short { .. } | Fault::Flip { .. } | Fault::Stall { .. } => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests;
