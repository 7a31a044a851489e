//! The service: one short method per call.

use std::{pin::Pin, sync::Arc};

use futures::Stream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status};
use weightd_access::Access;
use weightd_expose::Volumes;
use weightd_fetch::{FetchError, Fetcher, Transfer};
use weightd_proto::v1::{self, weights_server::Weights};
use weightd_store::{SnapshotRecord, Store, StoreError};
use weightd_types::{Selection, SnapshotKey, SourceUri};

use crate::{
    Loads,
    failure::{self, Invalid},
    info,
    jobs::Jobs,
    prefetch, verify,
    wishes::Wishes,
};

/// A stream of answers.
pub(crate) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What clients can ask of an agent.
#[derive(Debug, Clone)]
pub struct Control {
    pub(crate) fetcher: Fetcher,
    pub(crate) access: Access,
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) wishes: Arc<Wishes>,
    pub(crate) volumes: Volumes,
    pub(crate) loads: Arc<Loads>,
    /// Tasks that outlive the call that began them.
    pub(crate) tasks: TaskTracker,
    pub(crate) stopping: CancellationToken,
}

impl Control {
    /// The service of an agent that ends when `stopping` is cancelled; `tasks` are then to be waited for.
    pub fn new(
        fetcher: Fetcher,
        access: Access,
        volumes: Volumes,
        loads: Arc<Loads>,
        tasks: TaskTracker,
        stopping: CancellationToken,
    ) -> Self {
        let (jobs, wishes) = (Arc::default(), Arc::default());
        Self { fetcher, access, jobs, wishes, volumes, loads, tasks, stopping }
    }

    pub(crate) fn store(&self) -> &Store {
        self.fetcher.store()
    }

    pub(crate) fn transfer_of(&self, key: SnapshotKey) -> Option<Arc<Transfer>> {
        self.fetcher.transfers().into_iter().find(|transfer| transfer.key() == key)
    }

    pub(crate) async fn describe(&self, record: &SnapshotRecord) -> Result<v1::SnapshotInfo, StoreError> {
        let present_bytes = match record.complete {
            true => record.manifest.size(),
            false => self.presence(record).await?.iter().map(|(bytes, _)| bytes).sum(),
        };
        Ok(info::snapshot(record, present_bytes, self.transfer_of(record.key()).is_some()))
    }

    async fn presence(&self, record: &SnapshotRecord) -> Result<Vec<(u64, bool)>, StoreError> {
        if record.complete {
            return Ok(record.manifest.objects.iter().map(|entry| (entry.object.size, true)).collect());
        }
        self.store().presence(Arc::clone(&record.manifest)).await
    }

    async fn list_all(&self) -> Result<Vec<v1::SnapshotInfo>, StoreError> {
        let mut snapshots = Vec::new();
        for record in self.store().snapshots() {
            snapshots.push(self.describe(&record).await?);
        }
        snapshots.sort_by(|a, b| (&a.source, &a.id).cmp(&(&b.source, &b.id)));
        Ok(snapshots)
    }

    async fn get_one(&self, request: &v1::GetRequest) -> Result<v1::GetResponse, StoreError> {
        let mut record = self.store().find(&request.snapshot)?;
        // Someone is about to read its files, which someone else may have deleted.
        if record.complete && !self.store().is_complete(record.key()).await? {
            record = self.store().find(&request.snapshot)?;
        }
        let objects = if request.summary {
            Vec::new()
        } else {
            let presence = self.presence(&record).await?;
            record
                .manifest
                .objects
                .iter()
                .zip(presence)
                .map(|(entry, here)| info::object(self.store(), entry, here))
                .collect()
        };
        Ok(v1::GetResponse { snapshot: Some(self.describe(&record).await?), objects })
    }

    async fn set_pinned(&self, name: &str, pinned: bool) -> Result<v1::SnapshotInfo, StoreError> {
        let key = self.store().find(name)?.key();
        self.store().set_pinned(key, pinned).await?;
        let record =
            self.store().snapshot(&key).ok_or_else(|| StoreError::NotFound { name: name.to_owned() })?;
        self.describe(&record).await
    }

    /// A transfer that only the agent itself waits for is given up first; one that a client waits for is in use.
    async fn remove_all(&self, request: &v1::RemoveRequest) -> Result<v1::RemoveResponse, StoreError> {
        let records = match self.store().find_all(&request.snapshot) {
            Err(StoreError::NotFound { .. }) if request.allow_missing => {
                return Ok(v1::RemoveResponse::default());
            }
            found => found?,
        };
        if request.force || !records.iter().any(|record| record.pinned || record.wanted) {
            for record in records {
                self.jobs.give_up(self.store(), record.key()).await?;
            }
        }
        let removed = self.store().remove(&request.snapshot, request.force).await?;
        let snapshot_ids = removed.snapshots.iter().map(ToString::to_string).collect();
        Ok(v1::RemoveResponse { snapshot_ids, freed_bytes: removed.freed_bytes })
    }

    async fn resolve_only(&self, request: v1::ResolveRequest) -> Result<v1::ResolveResponse, Status> {
        let (uri, selection) = wanted(&request.source, request.selection.clone())?;
        let layout = info::wanted_layout(request.layout());
        let resolution =
            self.fetcher.resolve(&uri, &selection).await.map_err(|error| failure::fetch_status(&error))?;
        let manifest = Arc::new(weightd_store::SnapshotManifest::new(&resolution.snapshot, layout, 0));
        let presence = self
            .store()
            .presence(Arc::clone(&manifest))
            .await
            .map_err(|error| failure::store_status(&error))?;
        let present: u64 = presence.iter().map(|(bytes, _)| bytes).sum();
        let objects = manifest.objects.iter().zip(presence);
        let objects = objects.map(|(entry, here)| info::object(self.store(), entry, here)).collect();
        Ok(v1::ResolveResponse {
            snapshot_id: manifest.id.to_string(),
            source: manifest.source.to_string(),
            objects,
            left_out: resolution.left_out.iter().map(info::left_out).collect(),
            total_bytes: manifest.size(),
            missing_bytes: manifest.size().saturating_sub(present),
        })
    }

    async fn status_now(&self) -> Result<v1::StatusResponse, StoreError> {
        let (store, usage) = (self.store(), self.store().usage().await?);
        let (config, engine) = (store.config(), store.engine());
        let store = v1::StoreStatus {
            directory: config.directory.to_string_lossy().into_owned(),
            used_bytes: usage.used,
            quota_bytes: config.quota_bytes.unwrap_or(0),
            disk_free_bytes: usage.free,
            disk_total_bytes: usage.total,
            floor_bytes: usage.floor,
            engine: engine.name().to_owned(),
            direct_io: engine.is_direct(),
        };
        Ok(v1::StatusResponse {
            transfers: self.fetcher.transfers().iter().map(|transfer| transfer_info(transfer)).collect(),
            store: Some(store),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            requests_in_flight: u32::try_from(self.fetcher.requests_in_flight()).unwrap_or(u32::MAX),
            tiers: self.store().tiers().iter().map(info::tier).collect(),
        })
    }
}

fn transfer_info(transfer: &Transfer) -> v1::Transfer {
    let (done, total, rate) = (transfer.done_bytes(), transfer.manifest().size(), transfer.rate_bytes());
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    let eta = |rate: u64| total.saturating_sub(done) as f64 / rate as f64;
    v1::Transfer {
        snapshot_id: transfer.key().id.to_string(),
        source: transfer.manifest().source.to_string(),
        done_bytes: done,
        total_bytes: total,
        rate_bytes: rate,
        eta_seconds: (rate > 0).then(|| eta(rate)),
        priority: transfer.priority(),
    }
}

/// A source and what to take of it, if both make sense.
pub(crate) fn wanted(
    source: &str,
    selection: Option<v1::Selection>,
) -> Result<(SourceUri, Selection), Invalid> {
    let v1::Selection { include, exclude } = selection.unwrap_or_default();
    let selection = Selection { include, exclude };
    selection.check()?;
    Ok((source.parse()?, selection))
}

fn answered<T>(outcome: Result<T, StoreError>) -> Result<Response<T>, Status> {
    outcome.map(Response::new).map_err(|error| failure::store_status(&error))
}

#[tonic::async_trait]
impl Weights for Control {
    type PrefetchStream = Answers<v1::PrefetchEvent>;
    type VerifyStream = Answers<v1::VerifyEvent>;

    async fn prefetch(
        &self,
        request: Request<v1::PrefetchRequest>,
    ) -> Result<Response<Self::PrefetchStream>, Status> {
        prefetch::start(self, request.into_inner()).await.map(Response::new)
    }

    async fn resolve(
        &self,
        request: Request<v1::ResolveRequest>,
    ) -> Result<Response<v1::ResolveResponse>, Status> {
        self.resolve_only(request.into_inner()).await.map(Response::new)
    }

    async fn list(&self, _: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        answered(self.list_all().await.map(|snapshots| v1::ListResponse { snapshots }))
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        answered(self.get_one(request.get_ref()).await)
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        answered(self.status_now().await)
    }

    async fn pin(&self, request: Request<v1::PinRequest>) -> Result<Response<v1::PinResponse>, Status> {
        let pinned = self.set_pinned(&request.get_ref().snapshot, true).await;
        answered(pinned.map(|snapshot| v1::PinResponse { snapshot: Some(snapshot) }))
    }

    async fn unpin(&self, request: Request<v1::UnpinRequest>) -> Result<Response<v1::UnpinResponse>, Status> {
        let unpinned = self.set_pinned(&request.get_ref().snapshot, false).await;
        answered(unpinned.map(|snapshot| v1::UnpinResponse { snapshot: Some(snapshot) }))
    }

    async fn remove(
        &self,
        request: Request<v1::RemoveRequest>,
    ) -> Result<Response<v1::RemoveResponse>, Status> {
        answered(self.remove_all(request.get_ref()).await)
    }

    async fn collect_garbage(
        &self,
        request: Request<v1::CollectGarbageRequest>,
    ) -> Result<Response<v1::CollectGarbageResponse>, Status> {
        let collected = self.store().collect_garbage(request.get_ref().partials).await;
        answered(collected.map(|collected| v1::CollectGarbageResponse {
            freed_bytes: collected.freed_bytes,
            removed_blobs: collected.removed_blobs,
            evicted_snapshot_ids: collected.evicted.iter().map(ToString::to_string).collect(),
        }))
    }

    async fn set_wanted(
        &self,
        request: Request<v1::SetWantedRequest>,
    ) -> Result<Response<v1::SetWantedResponse>, Status> {
        answered(self.wishes.set(self, request.into_inner()).await)
    }

    async fn verify(
        &self,
        request: Request<v1::VerifyRequest>,
    ) -> Result<Response<Self::VerifyStream>, Status> {
        let started: Result<_, FetchError> = verify::start(self, request.get_ref());
        started.map(Response::new).map_err(|error| failure::fetch_status(&error))
    }
}
