//! The service of volumes.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tonic::{Request, Response, Status};
use weightd_expose::{Event, Serving, Volume};
use weightd_fetch::{FetchError, Transfer};
use weightd_proto::v1::{self, volumes_server::Volumes};
use weightd_store::{SnapshotRecord, StoreError};
use weightd_types::SnapshotKey;

use crate::{Control, failure, pods::Found, service::wanted};

/// What is asked for.
pub(crate) struct Wish {
    target: PathBuf,
    mode: v1::VolumeMode,
    wait: bool,
}

impl Control {
    async fn publish_one(&self, mut request: v1::PublishRequest) -> Result<v1::VolumeInfo, Status> {
        let target = self.target(&request.target_path).await?;
        let pod = request.pod.take();
        let checked = self.access.check_target(&target, pod.is_some()).await;
        checked.map_err(|error| failure::access_status(&error))?;
        let wish = Wish { target, mode: request.mode(), wait: request.wait };
        if !self.volumes.is_adopted() {
            let taken_over = self.loads.take_over(&self.volumes).await;
            taken_over.map_err(|error| failure::expose_status(&error))?;
        }
        let (volume, is_new) = match (self.published(&request, &wish.target).await?, pod) {
            (Some(known), Some(pod)) => {
                self.renew(pod, &request, &known).await?;
                // kubelet comes again every minute or so, and wants no more of the volume than the first time: an operator
                // may have unpinned it since.
                (request.pin, request.warm_up, request.resident) = (false, false, false);
                (known, false)
            }
            (Some(known), None) => (known, false),
            (None, Some(pod)) => (self.publish_for(pod, &request, &wish).await?, true),
            (None, None) => (self.publish_new(&request, &wish).await?, true),
        };
        if request.pin {
            self.pin(&volume, is_new).await?;
        }
        if request.warm_up || is_new && self.volumes.warms_up_all() {
            self.volumes.warm_up(&volume);
        }
        if request.resident {
            self.volumes.bring_into_memory(&volume);
        }
        if wish.wait {
            let completed = self.wait_until_complete(volume.snapshot).await;
            completed.map_err(|error| failure::fetch_status(&error))?;
        }
        self.volume_info(&volume).await
    }

    /// Keeps a volume's snapshot from eviction. A new volume that cannot be is taken away again: kubelet would find it the
    /// next time, and believe that all was done.
    async fn pin(&self, volume: &Volume, is_new: bool) -> Result<(), Status> {
        let Err(error) = self.store().set_pinned(volume.snapshot, true).await else { return Ok(()) };
        if is_new {
            self.take_away(&volume.target).await?;
        }
        Err(failure::store_status(&error))
    }

    /// Whether there was a volume.
    async fn take_away(&self, target: &Path) -> Result<bool, Status> {
        let gone = self.volumes.unpublish(target.to_owned()).await;
        let was_published = gone.map_err(|error| failure::expose_status(&error))?;
        self.access.end(target);
        Ok(was_published)
    }

    /// A target as the mount table would have it.
    async fn target(&self, path: &str) -> Result<PathBuf, Status> {
        let resolved = self.volumes.resolve(PathBuf::from(path)).await;
        resolved.map_err(|error| failure::expose_status(&error))
    }

    /// A volume of that source which is there already: it stays what it is, whatever the source has become.
    async fn published(&self, request: &v1::PublishRequest, target: &Path) -> Result<Option<Volume>, Status> {
        let volumes = self.volumes.list().await.map_err(|error| failure::expose_status(&error))?;
        let is_it = |volume: &Volume| {
            let record = self.store().snapshot(&volume.snapshot);
            let is_named = |record: SnapshotRecord| {
                let found = self.store().find_all(&request.source).unwrap_or_default();
                found.iter().any(|found| found.key() == record.key())
            };
            volume.target == target && record.is_some_and(is_named)
        };
        Ok(volumes.into_iter().find(is_it))
    }

    async fn publish_new(&self, request: &v1::PublishRequest, wish: &Wish) -> Result<Volume, Status> {
        let stored = self.store().find(&request.source).ok().filter(|_| !request.source.contains("://"));
        match stored {
            Some(record) => {
                let lease = self.access.operator(&record.manifest.source);
                let volume = self.publish_stored(&record, wish).await?;
                lease.settle(&volume.target, volume.snapshot);
                Ok(volume)
            }
            None => self.publish_source(request, wish).await,
        }
    }

    pub(crate) async fn publish_stored(
        &self,
        record: &SnapshotRecord,
        wish: &Wish,
    ) -> Result<Volume, Status> {
        if record.directory.is_some() && wish.mode != v1::VolumeMode::Fuse {
            let bound = self.volumes.bind(record.key(), wish.target.clone()).await;
            return bound.map_err(|error| failure::expose_status(&error));
        }
        let transfer = self.fetcher.resume(Arc::clone(&record.manifest), 0);
        self.publish_transfer(transfer, wish).await
    }

    async fn publish_source(&self, request: &v1::PublishRequest, wish: &Wish) -> Result<Volume, Status> {
        let (uri, selection) = wanted(&request.source, request.selection.clone())?;
        let lease = self.access.operator(&uri);
        let resolution =
            self.fetcher.resolve(&uri, &selection).await.map_err(|error| failure::fetch_status(&error))?;
        self.publish_found(request, wish, &uri, Found::Now(resolution), lease).await
    }

    pub(crate) async fn publish_transfer(
        &self,
        transfer: Arc<Transfer>,
        wish: &Wish,
    ) -> Result<Volume, Status> {
        let key = transfer.key();
        let fetch_failed = |error: FetchError| failure::fetch_status(&error);
        let through_fuse = wish.mode == v1::VolumeMode::Fuse;
        let waits_first = wish.mode == v1::VolumeMode::Bind || wish.wait && !through_fuse;
        if waits_first {
            transfer.wait().await.map_err(fetch_failed)?;
        }
        let lengths = match transfer.lengths().await.map_err(fetch_failed)? {
            Some(lengths) if !waits_first => lengths,
            // Files of which a read-only tier has some are in no directory that could be bound.
            _ if through_fuse
                || self.store().snapshot(&key).is_some_and(|record| record.directory.is_none()) =>
            {
                self.fetcher.stored_lengths(transfer.manifest()).await.map_err(fetch_failed)?
            }
            _ => {
                let bound = self.volumes.bind(key, wish.target.clone()).await;
                return bound.map_err(|error| failure::expose_status(&error));
            }
        };
        let manifest = Arc::clone(transfer.manifest());
        let shown = self.volumes.show(manifest, lengths, wish.target.clone()).await;
        let volume = shown.map_err(|error| failure::expose_status(&error))?;
        self.loads.keep(transfer);
        Ok(volume)
    }

    async fn wait_until_complete(&self, key: SnapshotKey) -> Result<(), FetchError> {
        let not_found = || StoreError::NotFound { name: key.to_string() };
        let record = self.store().snapshot(&key).ok_or_else(not_found)?;
        if !record.complete {
            self.fetcher.resume(record.manifest, 0).wait().await?;
        }
        Ok(())
    }

    async fn volume_info(&self, volume: &Volume) -> Result<v1::VolumeInfo, Status> {
        let serving = match volume.serving {
            Serving::Bind => v1::VolumeServing::Bind,
            Serving::Passthrough => v1::VolumeServing::Passthrough,
            Serving::Fuse => v1::VolumeServing::Fuse,
        };
        let described = match self.store().snapshot(&volume.snapshot) {
            Some(record) => self.describe(&record).await.map_err(|error| failure::store_status(&error))?,
            // Mounted, and gone from the store: someone emptied it by hand.
            None => v1::SnapshotInfo::default(),
        };
        Ok(v1::VolumeInfo {
            target_path: volume.target.to_string_lossy().into_owned(),
            snapshot: volume.snapshot.to_string(),
            source: described.source,
            serving: serving.into(),
            state: described.state,
            size_bytes: described.size_bytes,
            present_bytes: described.present_bytes,
        })
    }

    fn event_info(&self, event: &Event) -> v1::VolumeEvent {
        let record = self.store().snapshot(&event.snapshot);
        v1::VolumeEvent {
            at: Some(event.at.into()),
            snapshot: event.snapshot.to_string(),
            source: record.map_or(String::new(), |record| record.manifest.source.to_string()),
            path: event.path.as_ref().map_or(String::new(), ToString::to_string),
            message: event.message.clone(),
        }
    }
}

#[tonic::async_trait]
impl Volumes for Control {
    async fn publish(
        &self,
        request: Request<v1::PublishRequest>,
    ) -> Result<Response<v1::PublishResponse>, Status> {
        let volume = Some(self.publish_one(request.into_inner()).await?);
        Ok(Response::new(v1::PublishResponse { volume }))
    }

    async fn unpublish(
        &self,
        request: Request<v1::UnpublishRequest>,
    ) -> Result<Response<v1::UnpublishResponse>, Status> {
        let target = self.target(&request.get_ref().target_path).await?;
        let was_published = self.take_away(&target).await?;
        Ok(Response::new(v1::UnpublishResponse { was_published }))
    }

    async fn stats(&self, request: Request<v1::StatsRequest>) -> Result<Response<v1::StatsResponse>, Status> {
        let target = self.target(&request.get_ref().target_path).await?;
        let volumes = self.volumes.list().await.map_err(|error| failure::expose_status(&error))?;
        let not_found = || {
            let name = format!("a volume at {}", target.display());
            failure::store_status(&StoreError::NotFound { name })
        };
        let volume = volumes.iter().find(|volume| volume.target == target).ok_or_else(not_found)?;
        let files = self.store().snapshot(&volume.snapshot).map_or(0, |record| record.manifest.objects.len());
        let volume = Some(self.volume_info(volume).await?);
        Ok(Response::new(v1::StatsResponse { volume, file_count: files as u64 }))
    }

    async fn list_volumes(
        &self,
        _: Request<v1::ListVolumesRequest>,
    ) -> Result<Response<v1::ListVolumesResponse>, Status> {
        let mut volumes = Vec::new();
        for volume in self.volumes.list().await.map_err(|error| failure::expose_status(&error))? {
            volumes.push(self.volume_info(&volume).await?);
        }
        let events = self.volumes.events().iter().map(|event| self.event_info(event)).collect();
        Ok(Response::new(v1::ListVolumesResponse { volumes, events }))
    }
}
