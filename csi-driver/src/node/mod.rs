//! The Node service: volumes of this node's pods.

mod publish;
mod unpublish;
mod wish;

use std::{path::PathBuf, sync::Arc, time::Duration};

use tonic::{Request, Response, Status};
use weightd_proto::csi::{self, node_server::Node as Service, volume_usage::Unit};

use crate::{
    agent::Agent,
    calls::Calls,
    error::CallError,
    target::{self, InvalidTarget},
    turns::Turns,
};

/// How long after its time a call may take to say how far it came. kubelet waits for two minutes in all.
const ANSWER: Duration = Duration::from_secs(5);

/// The Node service. Clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) agent: Agent,
    pub(crate) calls: Calls,
    pub(crate) turns: Turns,
    /// As the cluster calls the node.
    pub(crate) id: Arc<str>,
    /// Where targets lie.
    pub(crate) kubelet_directory: Arc<PathBuf>,
    /// How long a call may wait until all bytes are here.
    pub(crate) ready_within: Duration,
}

impl Node {
    async fn stats(
        &self,
        request: &csi::NodeGetVolumeStatsRequest,
    ) -> Result<csi::NodeGetVolumeStatsResponse, CallError> {
        present(&request.volume_id, "the volume's id")?;
        let no_volume = || CallError::NoVolumeAt { path: request.volume_path.chars().take(200).collect() };
        let target = match target::check(&request.volume_path, &self.kubelet_directory) {
            Ok(target) => target,
            Err(InvalidTarget::Missing) => return Err(InvalidTarget::Missing.into()),
            Err(InvalidTarget::Elsewhere { .. }) => return Err(no_volume()),
        };
        let stats = self.agent.stats(&target).await?;
        let volume = stats.volume.ok_or_else(no_volume)?;
        let usage = |unit: Unit, total: u64, used: u64| csi::VolumeUsage {
            // Nothing can be written.
            available: 0,
            total: i64::try_from(total).unwrap_or(i64::MAX),
            used: i64::try_from(used).unwrap_or(i64::MAX),
            unit: unit.into(),
        };
        let usage = vec![
            usage(Unit::Bytes, volume.size_bytes, volume.present_bytes),
            usage(Unit::Inodes, stats.file_count, stats.file_count),
        ];
        Ok(csi::NodeGetVolumeStatsResponse { usage, volume_condition: None })
    }

    fn capabilities() -> csi::NodeGetCapabilitiesResponse {
        use csi::node_service_capability::{Rpc, Type, rpc};
        let kind = Some(Type::Rpc(Rpc { r#type: rpc::Type::GetVolumeStats.into() }));
        csi::NodeGetCapabilitiesResponse { capabilities: vec![csi::NodeServiceCapability { r#type: kind }] }
    }
}

/// Whether a text that every request must have is there.
fn present(text: &str, what: &'static str) -> Result<(), CallError> {
    if text.is_empty() { Err(CallError::Missing { what }) } else { Ok(()) }
}

/// Work on files and mounts, which may take its time.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, CallError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| CallError::Defect(error.to_string()))
}

#[tonic::async_trait]
impl Service for Node {
    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Result<Response<csi::NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let subject = request.target_path.clone();
        self.calls.answer("NodePublishVolume", &subject, self.publish(request)).await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<csi::NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let subject = request.target_path.clone();
        self.calls.answer("NodeUnpublishVolume", &subject, self.unpublish(request)).await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<csi::NodeGetVolumeStatsResponse>, Status> {
        let request = request.get_ref();
        self.calls.answer("NodeGetVolumeStats", &request.volume_path, self.stats(request)).await
    }

    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<csi::NodeGetCapabilitiesResponse>, Status> {
        self.calls.answer("NodeGetCapabilities", "", async { Ok(Self::capabilities()) }).await
    }

    async fn node_get_info(
        &self,
        _: Request<csi::NodeGetInfoRequest>,
    ) -> Result<Response<csi::NodeGetInfoResponse>, Status> {
        let info = csi::NodeGetInfoResponse { node_id: self.id.to_string(), ..Default::default() };
        self.calls.answer("NodeGetInfo", "", async { Ok(info) }).await
    }
}
