//! The handle of this room.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, future::try_join_all};
use tokio::time::{Instant, sleep, timeout};
use url::Url;
use weightd_source::{Credential, Opener, Resolution, ResolveError, Source, SourceError, resolve};
use weightd_types::{ByteRange, Object, Scheme, Selection, SnapshotId, SnapshotKey, SourceUri};

use crate::{
    AccessError, Config, Lease, Metrics, Pod, WhoReads,
    exchange::Exchanger,
    files,
    gate::Gate,
    grants::{Asked, Grant, Grants},
    holders::Holders,
    identity::{Claim, Principal},
    web,
};

/// Times an origin is asked that fails on its side, when no earlier answer counts.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);
/// Longest wait for an origin when an earlier answer counts.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes that are read of an object to see whether it may be.
const PROBE_BYTES: u64 = 16;
/// Objects that are looked at at once.
const PROBES: usize = 16;

/// Who may read what. Clones share everything.
#[derive(Debug, Clone)]
pub struct Access {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    origins: Arc<dyn Opener>,
    config: Config,
    holders: Holders,
    grants: Arc<Grants>,
    exchanger: Exchanger,
    /// Addresses that pods may name.
    web: Arc<[Url]>,
    /// Directories that pods may name.
    files: Arc<[String]>,
    metrics: Metrics,
}

/// That a pod may read a source.
#[derive(Debug)]
pub enum Admission {
    /// The origin says so, and what the source is now.
    Now {
        /// The pod's credential.
        lease: Lease,
        /// What the source is.
        resolution: Resolution,
    },
    /// The origin said so, and cannot be asked now.
    Earlier {
        /// The pod's credential, if that could be had.
        lease: Option<Lease>,
        /// What the source was then.
        snapshot: SnapshotId,
        /// What the origin, or who vouches for the pod, failed with.
        why: AccessError,
    },
}

/// A credential, and when it ends.
type Verified = (Credential, Option<Instant>);

impl Access {
    /// Access to what an opener reaches.
    pub fn new(origins: Arc<dyn Opener>, config: Config) -> Self {
        let metrics = Metrics::default();
        let exchanger = Exchanger::new(config.sts_endpoint.clone(), config.connect_timeout, metrics.clone());
        let (holders, grants) = (Holders::default(), Arc::default());
        let (web, files) = (config.web.clone().into(), config.files.clone().into());
        let inner = Inner { origins, config, holders, grants, exchanger, web, files, metrics };
        Self { inner: Arc::new(inner) }
    }

    /// What asks as those who are there.
    pub fn opener(&self) -> Arc<dyn Opener> {
        let Inner { origins, holders, grants, web, files, .. } = self.inner.as_ref();
        Arc::new(Gate {
            origins: Arc::clone(origins),
            holders: holders.clone(),
            grants: Arc::clone(grants),
            web: Arc::clone(web),
            files: Arc::clone(files),
        })
    }

    /// What is counted here.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// Brings the gauges up to date, before they are read.
    pub fn refresh_metrics(&self) {
        let live = i64::try_from(self.inner.holders.live()).unwrap_or(i64::MAX);
        self.inner.metrics.live.set(live);
    }

    /// Checks that a volume is a pod's exactly when it is where pods' volumes are.
    ///
    /// # Errors
    /// [`AccessError::NoPod`], [`AccessError::Elsewhere`].
    pub async fn check_target(&self, target: &Path, has_pod: bool) -> Result<(), AccessError> {
        let kubelet_directory = self.inner.config.kubelet_directory.display().to_string();
        let target_text = target.display().to_string();
        match (self.is_pods(target).await, has_pod) {
            (true, false) => Err(AccessError::NoPod { target: target_text, kubelet_directory }),
            (false, true) => Err(AccessError::Elsewhere { target: target_text, kubelet_directory }),
            (true, true) | (false, false) => Ok(()),
        }
    }

    /// Checks that a pod may have a source's snapshot pinned.
    ///
    /// # Errors
    /// [`AccessError::NoPinning`].
    pub fn check_pin(&self, source: &SourceUri) -> Result<(), AccessError> {
        match self.inner.config.pods_may_pin {
            true => Ok(()),
            false => Err(AccessError::NoPinning { what: source.to_string() }),
        }
    }

    /// Whether a target, whose links are followed, is where pods' volumes are.
    async fn is_pods(&self, target: &Path) -> bool {
        let directory = &self.inner.config.kubelet_directory;
        let found = tokio::fs::canonicalize(directory).await;
        target.starts_with(directory) || found.is_ok_and(|found| target.starts_with(found))
    }

    /// Lets a source be asked for as the node, because the operator wants it.
    pub fn operator(&self, source: &SourceUri) -> Lease {
        self.inner.holders.add(source, Principal::Node, Credential::Node, None)
    }

    /// Stands for a pod whose credential is not there: nobody asks as it, and a volume that it settles for is a pod's.
    pub fn absent(&self, source: &SourceUri) -> Lease {
        let principal = Principal::Nobody { why: "the pod's credential is not there yet", audience: None };
        self.inner.holders.add(source, principal, Credential::Anonymous, Some(Instant::now()))
    }

    /// Takes over a volume of an earlier agent. The operator's are read as the node again; what pods brought is gone, and
    /// kubelet brings it again. So it is of what confines a pod that reads as the node.
    pub async fn adopt(&self, target: &Path, snapshot: SnapshotKey, source: &SourceUri) {
        let is_confined = matches!(source.scheme(), Scheme::File | Scheme::Http | Scheme::Https);
        let is_nodes = self.inner.config.identity == WhoReads::Node && !is_confined;
        let lease = match is_nodes || !self.is_pods(target).await {
            true => self.operator(source),
            false => self.absent(source),
        };
        // It may have come here since.
        lease.settle_first(target, snapshot);
    }

    /// Asks the origin whether a pod may read a source, and what it is now. While it cannot be asked, an earlier answer
    /// counts that has not expired.
    ///
    /// # Errors
    /// [`AccessError`].
    pub async fn admit(
        &self,
        pod: &Pod,
        source: &SourceUri,
        selection: &Selection,
    ) -> Result<Admission, AccessError> {
        let admitted = match self.claim(pod, source).await {
            Ok(claim) => self.admit_as(&claim, source, selection).await,
            Err(error) => Err(error),
        };
        let is_refusal = admitted.as_ref().is_err_and(|error| error.is_refusal(source.scheme()));
        self.inner.metrics.answered(&admitted, is_refusal);
        admitted
    }

    async fn admit_as(
        &self,
        claim: &Claim,
        source: &SourceUri,
        selection: &Selection,
    ) -> Result<Admission, AccessError> {
        let asked = Asked::new(claim, source, selection);
        let grant = self.inner.grants.get(&asked);
        let verified = match self.verify(claim, source).await {
            Ok(verified) => verified,
            Err(error) => return self.earlier(error, &asked, grant, None),
        };
        match self.ask(claim, &verified.0, source, selection, grant.is_some()).await {
            Ok(resolution) => {
                let ends = verified.1.unwrap_or_else(|| Instant::now() + self.inner.config.answers_keep);
                self.inner.grants.put(asked, resolution.snapshot.id(), ends);
                Ok(Admission::Now { lease: self.hold(claim, source, verified), resolution })
            }
            Err(error) => {
                let lease = self.hold(claim, source, verified);
                self.earlier(error, &asked, grant, Some(lease))
            }
        }
    }

    /// Takes the credential that a pod brings again for a volume that it has. `None` when it could not be had; then what the
    /// volume has is used as long as it lasts.
    ///
    /// # Errors
    /// [`AccessError`]; the volume stays, and what it has ends by itself.
    pub async fn renew(
        &self,
        pod: &Pod,
        source: &SourceUri,
        selection: &Selection,
    ) -> Result<Option<Lease>, AccessError> {
        let claim = self.claim(pod, source).await?;
        let asked = Asked::new(&claim, source, selection);
        let Some(grant) = self.inner.grants.get(&asked) else {
            return match self.admit_as(&claim, source, selection).await? {
                Admission::Now { lease, .. } => Ok(Some(lease)),
                Admission::Earlier { lease, .. } => Ok(lease),
            };
        };
        match self.verify(&claim, source).await {
            Ok(verified) => Ok(Some(self.hold(&claim, source, verified))),
            Err(error) => self.earlier(error, &asked, Some(grant), None).map(|_| None),
        }
    }

    /// Waits until there is someone as whom a source may be asked for.
    pub async fn until_there(&self, source: &SourceUri) {
        self.inner.holders.until_there(source).await;
    }

    /// Ends the credential of a volume that was unmounted.
    pub fn end(&self, target: &Path) {
        self.inner.holders.end(target);
    }

    /// Ends credentials of volumes that others unmounted: of those that were there by then, all that are not there now.
    pub fn keep_only(
        &self,
        by_then: Instant,
        is_there: impl Fn(&Path) -> bool,
        is_open: impl Fn(&SnapshotKey) -> bool,
    ) {
        self.inner.holders.keep_only(by_then, is_there, is_open);
    }

    async fn claim(&self, pod: &Pod, source: &SourceUri) -> Result<Claim, AccessError> {
        let Inner { config, web, files, .. } = self.inner.as_ref();
        let (principal, confined, setting) = match source.scheme() {
            Scheme::File => (Principal::Node, files::confined(files, source).await, "access.files"),
            Scheme::Http | Scheme::Https => {
                (Principal::without_credentials(), web::confined(web, source), "access.web")
            }
            _ => return Claim::of(config, pod, source),
        };
        let credential =
            confined.ok_or_else(|| AccessError::NotAllowed { what: source.to_string(), setting })?;
        Ok(Claim::Ready(principal, credential))
    }

    async fn verify(&self, claim: &Claim, source: &SourceUri) -> Result<Verified, AccessError> {
        match claim {
            Claim::Ready(_, credential) => Ok((credential.clone(), None)),
            Claim::Token(token) => {
                let exchanged = self.inner.exchanger.exchange(token, source).await?;
                Ok((exchanged.credential, Some(exchanged.ends)))
            }
        }
    }

    fn hold(&self, claim: &Claim, source: &SourceUri, (credential, ends): Verified) -> Lease {
        self.inner.holders.add(source, claim.principal().clone(), credential, ends)
    }

    /// What an earlier answer is worth after an error.
    fn earlier(
        &self,
        error: AccessError,
        asked: &Asked,
        grant: Option<Grant>,
        lease: Option<Lease>,
    ) -> Result<Admission, AccessError> {
        if error.is_refusal(asked.scheme()) {
            self.inner.grants.remove(asked);
        }
        match grant {
            Some(grant) if error.is_retryable() => {
                tracing::info!(%error, "an earlier answer of the origin counts");
                Ok(Admission::Earlier { lease, snapshot: grant.snapshot, why: error })
            }
            _ => Err(error),
        }
    }

    /// Lists a source and reads a little of it; an origin that is away is asked but once where an earlier answer counts.
    async fn ask(
        &self,
        claim: &Claim,
        credential: &Credential,
        uri: &SourceUri,
        selection: &Selection,
        is_known: bool,
    ) -> Result<Resolution, AccessError> {
        let mut attempt = 1;
        loop {
            let asking = self.ask_once(credential, uri, selection);
            let asked = match is_known {
                true => timeout(PATIENCE, asking).await.unwrap_or_else(|_| Err(silent(uri))),
                false => asking.await,
            };
            let error = match asked {
                Ok(resolution) => return Ok(resolution),
                Err(error) => error,
            };
            let may_pass =
                error.is_retryable() || matches!(error, ResolveError::Source(SourceError::Changed { .. }));
            if is_known || attempt == ATTEMPTS || !may_pass {
                return Err(AccessError::of(error, uri, claim.principal()));
            }
            sleep(PAUSE * attempt).await;
            attempt += 1;
        }
    }

    async fn ask_once(
        &self,
        credential: &Credential,
        uri: &SourceUri,
        selection: &Selection,
    ) -> Result<Resolution, ResolveError> {
        let source = self.inner.origins.open_as(uri, credential).await?;
        let resolution = resolve(source.as_ref(), uri, selection).await?;
        probe(source.as_ref(), &resolution).await?;
        Ok(resolution)
    }
}

/// Reads a little of the smallest object of each directory: who may list need not be one who may read, and who may read
/// one directory not one who may read the next.
async fn probe(source: &dyn Source, resolution: &Resolution) -> Result<(), SourceError> {
    let mut smallest = BTreeMap::new();
    for object in resolution.snapshot.objects().iter().filter(|object| object.size > 0) {
        let path = object.path.to_string();
        let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory).to_owned();
        let known = smallest.entry(directory).or_insert(object);
        if object.size < known.size {
            *known = object;
        }
    }
    let smallest: Vec<&Object> = smallest.into_values().collect();
    for some in smallest.chunks(PROBES) {
        try_join_all(some.iter().map(|object| read_a_little(source, object).boxed())).await?;
    }
    Ok(())
}

async fn read_a_little(source: &dyn Source, object: &Object) -> Result<(), SourceError> {
    let mut stream = source.read(object, ByteRange::new(0, object.size.min(PROBE_BYTES))).await?;
    stream.next().await.transpose().map(drop)
}

fn silent(uri: &SourceUri) -> ResolveError {
    let cause = format!("no answer in {} s", PATIENCE.as_secs()).into();
    SourceError::Unavailable { what: uri.to_string(), cause, retry_after: None }.into()
}
