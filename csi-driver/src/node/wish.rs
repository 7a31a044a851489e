//! What a publish asks for, checked before anything is touched.

use std::path::{Path, PathBuf};

use weightd_proto::{csi, v1};

use super::present;
use crate::{
    attributes::{Attributes, Wait},
    capability,
    error::CallError,
    pod, target,
    volume_id::VolumeId,
};

/// A volume at a target.
pub(super) struct Wish {
    pub(super) target: PathBuf,
    pub(super) wait: Wait,
    /// How the agent is asked for it. It holds tokens and secrets: not to be printed.
    pub(super) request: v1::PublishRequest,
}

impl Wish {
    /// Reads a request of kubelet's. Whatever it says of writing, the volume is read-only.
    pub(super) fn read(request: &csi::NodePublishVolumeRequest, kubelet: &Path) -> Result<Self, CallError> {
        present(&request.volume_id, "the volume's id")?;
        let target = target::check(&request.target_path, kubelet)?;
        capability::check(request.volume_capability.as_ref())?;
        let attributes = Attributes::parse(&request.volume_context)?;
        let pod = pod::parse(&request.volume_context, &request.secrets, &target)?;
        let expected_snapshot = request.volume_id.parse().map(|id: VolumeId| id.snapshot).unwrap_or_default();
        let asked = v1::PublishRequest {
            source: attributes.source,
            layout: attributes.layout.into(),
            target_path: target.to_string_lossy().into_owned(),
            pin: attributes.pin,
            warm_up: attributes.warm_up,
            pod,
            expected_snapshot,
            ..Default::default()
        };
        Ok(Self { target, wait: attributes.wait, request: asked })
    }
}
