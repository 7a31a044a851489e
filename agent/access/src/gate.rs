//! Sources that ask as whoever is there, request by request.

use std::sync::Arc;

use async_trait::async_trait;
use futures::future::{BoxFuture, FutureExt};
use url::Url;
use weightd_source::{ByteStream, Credential, Listed, Opener, Source, SourceError};
use weightd_types::{ByteRange, Object, SourceUri};

use crate::{
    error::Refusal,
    files,
    grants::Grants,
    holders::{Holder, Holders},
    web,
};

/// An opener whose sources are asked as those who are there.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    pub(crate) origins: Arc<dyn Opener>,
    pub(crate) holders: Holders,
    /// What origins granted: whom they refuse is granted nothing any more.
    pub(crate) grants: Arc<Grants>,
    /// Addresses that pods may name.
    pub(crate) web: Arc<[Url]>,
    /// Directories that pods may name.
    pub(crate) files: Arc<[String]>,
}

/// A source, asked as those who are there.
#[derive(Debug)]
struct Gated {
    gate: Gate,
    uri: SourceUri,
    /// Whether it is the node's own business, so that the node may ask when nobody else can.
    is_upkeep: bool,
}

impl Gate {
    fn gated(&self, uri: &SourceUri, is_upkeep: bool) -> Arc<dyn Source> {
        Arc::new(Gated { gate: self.clone(), uri: uri.clone(), is_upkeep })
    }
}

#[async_trait]
impl Opener for Gate {
    async fn open(&self, uri: &SourceUri) -> Result<Arc<dyn Source>, SourceError> {
        Ok(self.gated(uri, false))
    }

    async fn open_as(
        &self,
        uri: &SourceUri,
        credential: &Credential,
    ) -> Result<Arc<dyn Source>, SourceError> {
        self.origins.open_as(uri, credential).await
    }

    async fn open_to_mend(&self, uri: &SourceUri) -> Result<Arc<dyn Source>, SourceError> {
        Ok(self.gated(uri, true))
    }
}

impl Gated {
    /// What the first gives who is not refused.
    async fn ask<'a, T>(
        &self,
        url: &str,
        request: impl Fn(Arc<dyn Source>) -> BoxFuture<'a, Result<T, SourceError>> + Send + Sync,
    ) -> Result<T, SourceError> {
        let Gate { origins, holders, .. } = &self.gate;
        let holders = holders.of(url, &self.uri.root());
        let has_node = holders.iter().any(|holder| holder.credential == Credential::Node);
        let mut refused = None;
        for holder in &holders {
            let source = origins.open_as(&self.uri, &self.as_whom(url, holder)).await?;
            let error = match request(source).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            match Refusal::of(&error, self.uri.scheme()) {
                Some(refusal) => refused = Some(self.note(url, holder, refusal, error)?),
                None => return Err(error),
            }
        }
        if self.is_upkeep && !has_node {
            return request(origins.open_as(&self.uri, &self.upkeeper().await).await?).await;
        }
        Err(self.paused(url, refused))
    }

    /// What a holder asks with. A server that a pod has named leads the operator's volumes of it nowhere else either: what
    /// they fetch, the pod is shown.
    fn as_whom(&self, url: &str, holder: &Holder) -> Credential {
        let as_pods =
            || web::confined(&self.gate.web, &self.uri).filter(|_| self.gate.holders.is_named_by_pod(url));
        match &holder.credential {
            Credential::Node => as_pods().unwrap_or(Credential::Node),
            pods => pods.clone(),
        }
    }

    /// As whom the node mends what it has. A server or directory that pods may name leads it nowhere else then either: it
    /// may be a pod that named it.
    async fn upkeeper(&self) -> Credential {
        let directory = files::confined(&self.gate.files, &self.uri).await;
        directory.or_else(|| web::confined(&self.gate.web, &self.uri)).unwrap_or(Credential::Node)
    }

    /// Says why someone was refused, and has nobody ask as them again, nor see what is here because they once might; the
    /// node's refusal is its own.
    fn note(
        &self,
        url: &str,
        holder: &Holder,
        refusal: Refusal,
        error: SourceError,
    ) -> Result<String, SourceError> {
        self.gate.grants.end(holder, url);
        if holder.credential == Credential::Node {
            return Err(error);
        }
        self.gate.holders.refuse(url, &holder.credential, refusal);
        Ok(format!("; the origin refused {}: {error}", holder.principal))
    }

    fn paused(&self, url: &str, refused: Option<String>) -> SourceError {
        let hidden = match self.gate.holders.is_hidden(url) {
            true => ": the repository is not there, or none of the tokens that pods brought may see it",
            false => "",
        };
        let why = format!(
            "no pod that may read {} is there to ask with{hidden}{}; fetching goes on as soon as kubelet brings a credential \
             that may",
            self.uri,
            refused.unwrap_or_default()
        );
        SourceError::Paused { what: self.uri.to_string(), why }
    }
}

#[async_trait]
impl Source for Gated {
    async fn list(&self) -> Result<Vec<Listed>, SourceError> {
        self.ask(&self.uri.root(), |source| async move { source.list().await }.boxed()).await
    }

    async fn read(&self, object: &Object, range: ByteRange) -> Result<ByteStream, SourceError> {
        let url = self.uri.object_url(&object.path);
        self.ask(&url, |source| async move { source.read(object, range).await }.boxed()).await
    }
}
