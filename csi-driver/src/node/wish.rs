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
            resident: attributes.resident,
            pod,
            expected_snapshot,
            ..Default::default()
        };
        Ok(Self { target, wait: attributes.wait, request: asked })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use csi::volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode};

    use super::*;

    const TARGET: &str = "/var/lib/kubelet/pods/u-1/volumes/kubernetes.io~csi/weights/mount";

    fn request(volume_id: &str) -> csi::NodePublishVolumeRequest {
        let attributes = [
            ("source", "gs://models/x"),
            ("layout", "original"),
            ("pin", "true"),
            ("warmUp", "true"),
            ("resident", "true"),
            ("csi.storage.k8s.io/pod.name", "p"),
            ("csi.storage.k8s.io/pod.namespace", "team-a"),
            ("csi.storage.k8s.io/pod.uid", "u-1"),
            ("csi.storage.k8s.io/serviceAccount.name", "reader"),
        ];
        csi::NodePublishVolumeRequest {
            volume_id: volume_id.to_owned(),
            target_path: TARGET.to_owned(),
            volume_capability: Some(csi::VolumeCapability {
                access_type: Some(AccessType::Mount(MountVolume::default())),
                access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
            }),
            secrets: HashMap::from([("HF_TOKEN".to_owned(), "hf_x".to_owned())]),
            volume_context: attributes.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn the_agent_is_asked_for_what_kubelet_says() {
        let wish = Wish::read(&request("csi-1"), Path::new("/var/lib/kubelet")).unwrap();
        let asked = wish.request;
        assert_eq!((wish.target, wish.wait), (PathBuf::from(TARGET), Wait::Started));
        assert_eq!((asked.source.as_str(), asked.layout()), ("gs://models/x", v1::Layout::Original));
        assert_eq!((asked.target_path.as_str(), asked.expected_snapshot.as_str()), (TARGET, ""));
        assert!(asked.pin && asked.warm_up && asked.resident && !asked.wait);
        let pod = asked.pod.unwrap();
        assert_eq!((pod.namespace.as_str(), pod.service_account.as_str()), ("team-a", "reader"));
        assert_eq!(pod.secrets["HF_TOKEN"], "hf_x");
    }

    #[test]
    fn a_volume_that_the_controller_made_is_of_its_snapshot() {
        let snapshot = "ab".repeat(32);
        let id = format!("{snapshot}.original.0123456789abcdef");
        let wish = Wish::read(&request(&id), Path::new("/var/lib/kubelet")).unwrap();
        assert_eq!(wish.request.expected_snapshot, snapshot);
    }

    #[test]
    fn what_is_missing_is_named() {
        let read = |change: fn(&mut csi::NodePublishVolumeRequest)| {
            let mut request = request("csi-1");
            change(&mut request);
            Wish::read(&request, Path::new("/var/lib/kubelet")).err().unwrap().to_string()
        };
        assert!(read(|request| request.volume_id.clear()).contains("the volume's id"));
        assert!(read(|request| request.target_path.clear()).contains("the target path"));
        assert!(read(|request| request.volume_capability = None).contains("capability"));
        assert!(read(|request| request.volume_context.clear()).contains("\"source\""));
    }
}
