//! Volumes for pods: the pod's own identity decides.

use std::time::SystemTime;

use tonic::Status;
use weightd_access::{Admission, Lease, Pod, Token};
use weightd_expose::Volume;
use weightd_proto::v1;
use weightd_source::{Resolution, Secret};
use weightd_store::SnapshotRecord;
use weightd_types::{SnapshotId, SnapshotKey, SourceUri};

use crate::{Control, failure, info, service::wanted, volumes::Wish};

/// What a source is.
pub(crate) enum Found {
    /// Now.
    Now(Resolution),
    /// When its origin could last be asked.
    Earlier(SnapshotId, Status),
}

impl Control {
    /// Shows a source to a pod, if its origin lets the pod read it.
    pub(crate) async fn publish_for(
        &self,
        pod: v1::Pod,
        request: &v1::PublishRequest,
        wish: &Wish,
    ) -> Result<Volume, Status> {
        // A pod names sources only: an origin says who may read them, and nobody who may have a snapshot's id.
        let (uri, selection) = wanted(&request.source, request.selection.clone())?;
        if request.pin {
            self.access.check_pin(&uri).map_err(|error| failure::access_status(&error))?;
        }
        let admitted = self.access.admit(&described(pod), &uri, &selection).await;
        let (lease, found) = match admitted.map_err(|error| failure::access_status(&error))? {
            Admission::Now { lease, resolution } => (lease, Found::Now(resolution)),
            Admission::Earlier { lease, snapshot, why } => {
                let lease = lease.unwrap_or_else(|| self.access.absent(&uri));
                (lease, Found::Earlier(snapshot, failure::access_status(&why)))
            }
        };
        self.publish_found(request, wish, &uri, found, lease).await
    }

    /// Takes the credential that a pod brings for a volume that it has.
    pub(crate) async fn renew(
        &self,
        pod: v1::Pod,
        request: &v1::PublishRequest,
        volume: &Volume,
    ) -> Result<(), Status> {
        let (uri, selection) = wanted(&request.source, request.selection.clone())?;
        let renewed = self.access.renew(&described(pod), &uri, &selection).await;
        if let Some(lease) = renewed.map_err(|error| failure::access_status(&error))? {
            lease.settle(&volume.target, volume.snapshot);
        }
        Ok(())
    }

    /// Shows what a source is, or of what it was what the store has and the caller expects.
    pub(crate) async fn publish_found(
        &self,
        request: &v1::PublishRequest,
        wish: &Wish,
        uri: &SourceUri,
        found: Found,
        lease: Lease,
    ) -> Result<Volume, Status> {
        let layout = info::wanted_layout(request.layout());
        let expected = expected(request)?;
        let volume = match found {
            Found::Now(resolution) if expected.is_none_or(|id| id == resolution.snapshot.id()) => {
                self.publish_transfer(self.fetcher.prefetch(resolution, layout, 0), wish).await?
            }
            Found::Now(resolution) => {
                let id = expected.unwrap_or_else(|| resolution.snapshot.id());
                let changed = || changed(uri, resolution.snapshot.id(), id);
                let record = self.stored_of(uri, SnapshotKey { id, layout }).ok_or_else(changed)?;
                self.publish_stored(&record, wish).await?
            }
            Found::Earlier(id, why) => {
                let id = expected.unwrap_or(id);
                let record = self.stored_of(uri, SnapshotKey { id, layout }).ok_or(why)?;
                self.publish_stored(&record, wish).await?
            }
        };
        lease.settle(&volume.target, volume.snapshot);
        Ok(volume)
    }

    /// A complete snapshot of that source, and of no other: a pod must not get by an id what it may not read.
    fn stored_of(&self, uri: &SourceUri, key: SnapshotKey) -> Option<SnapshotRecord> {
        self.store().snapshot(&key).filter(|record| record.complete && record.manifest.source == *uri)
    }
}

fn expected(request: &v1::PublishRequest) -> Result<Option<SnapshotId>, Status> {
    if request.expected_snapshot.is_empty() {
        return Ok(None);
    }
    let invalid = |_| {
        failure::usage_status(&format!(
            "{}: {:?} is no id of a snapshot",
            request.source, request.expected_snapshot
        ))
    };
    request.expected_snapshot.parse().map(Some).map_err(invalid)
}

fn changed(uri: &SourceUri, now: SnapshotId, expected: SnapshotId) -> Status {
    let message = format!(
        "{uri}: is snapshot {now} now, the volume was made of {expected}, and this node does not have that: make a new \
         volume of it"
    );
    failure::usage_status(&message)
}

/// As the access room has it: from here on its secrets are not shown.
fn described(pod: v1::Pod) -> Pod {
    let token = |token: v1::ServiceAccountToken| Token {
        expires_at: token.expires_at.and_then(|end| SystemTime::try_from(end).ok()),
        token: Secret::new(&token.token),
    };
    Pod {
        name: pod.name,
        namespace: pod.namespace,
        service_account: pod.service_account,
        tokens: pod.tokens.into_iter().map(|(audience, found)| (audience, token(found))).collect(),
        secrets: pod.secrets.into_iter().map(|(name, text)| (name, Secret::new(&text))).collect(),
    }
}
