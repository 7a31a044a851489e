//! The CSI driver as kubelet meets it: the real driver, the real agent, a real bucket emulator, over the real sockets.

mod absence;
mod attributes;
mod claims;
mod leftovers;
mod lifecycle;
mod ready;
mod registration;
mod sanity;

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tokio::net::UnixStream;
use tonic::{
    Code, Response, Status,
    transport::{Channel, Endpoint},
};
use weightd_harness::{FakeGcs, ModelShape, mounts, unused_port};
use weightd_proto::csi::{
    NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodePublishVolumeRequest,
    NodeUnpublishVolumeRequest, VolumeCapability,
    identity_client::IdentityClient,
    node_client::NodeClient,
    volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode},
};

use crate::{
    daemon::get_from,
    program::{Running, program, until},
    volumes::{Node, SOURCE},
};

/// A node with a model in the bucket and what kubelet would have there.
struct Cluster {
    node: Node,
    http_port: u16,
}

impl Cluster {
    async fn new(gcs: &FakeGcs, endpoint: &str, shape: &ModelShape, more: &str) -> Self {
        let node = Node::new(gcs, endpoint, shape, more).await;
        fs::create_dir_all(node.place.at("kubelet/plugins_registry")).unwrap();
        Self { node, http_port: unused_port().unwrap() }
    }

    fn endpoint(&self) -> PathBuf {
        self.node.place.at("kubelet/plugins/csi.weightd.io/csi.sock")
    }

    fn registration(&self) -> PathBuf {
        self.node.place.at("kubelet/plugins_registry/csi.weightd.io@reg.sock")
    }

    /// As kubelet names them.
    fn target(&self, pod: &str) -> PathBuf {
        self.node.place.at(&format!("kubelet/pods/{pod}/volumes/kubernetes.io~csi/weights/mount"))
    }

    fn driver_command(&self, more: &[&str]) -> Command {
        let place = &self.node.place;
        let mut command = program("weightd-csi");
        let log = fs::OpenOptions::new().create(true).append(true).open(place.at("driver.log")).unwrap();
        command.arg("--endpoint").arg(format!("unix://{}", self.endpoint().display()));
        command.arg("--agent").arg(place.socket()).args(["--node-id", "node-1"]);
        command.arg("--kubelet-directory").arg(place.at("kubelet"));
        if !more.contains(&"--http-address") {
            command.args(["--http-address", &format!("127.0.0.1:{}", self.http_port)]);
        }
        command.args(more).stderr(log).stdout(Stdio::null());
        command
    }

    /// The driver, once it listens.
    async fn driver(&self, more: &[&str]) -> Running {
        let mut driver = Running::start(&mut self.driver_command(more));
        until("the driver listens", async || {
            let ended = driver.0.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", self.log());
            UnixStream::connect(self.endpoint()).await.ok()
        })
        .await;
        driver
    }

    fn log(&self) -> String {
        fs::read_to_string(self.node.place.at("driver.log")).unwrap_or_default()
    }

    fn http(&self, path: &str) -> Option<(u16, String)> {
        get_from(("127.0.0.1", self.http_port), path)
    }

    /// What kubelet sends when a pod with an inline volume comes.
    fn request(&self, pod: &str, attributes: &[(&str, &str)]) -> NodePublishVolumeRequest {
        let mut volume_context = HashMap::from([("source".to_owned(), SOURCE.to_owned())]);
        volume_context.extend(attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        NodePublishVolumeRequest {
            volume_id: format!("csi-{pod}"),
            target_path: self.target(pod).display().to_string(),
            volume_capability: Some(capability(Mode::SingleNodeWriter)),
            volume_context,
            ..Default::default()
        }
    }

    async fn publish(&self, pod: &str, attributes: &[(&str, &str)]) -> Result<(), Status> {
        let request = self.request(pod, attributes);
        NodeClient::new(channel(&self.endpoint())).node_publish_volume(request).await.map(drop)
    }

    async fn unpublish(&self, pod: &str) -> Result<(), Status> {
        let target_path = self.target(pod).display().to_string();
        let request = NodeUnpublishVolumeRequest { volume_id: format!("csi-{pod}"), target_path };
        NodeClient::new(channel(&self.endpoint())).node_unpublish_volume(request).await.map(drop)
    }

    async fn stats(&self, pod: &str) -> Result<NodeGetVolumeStatsResponse, Status> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: format!("csi-{pod}"),
            volume_path: self.target(pod).display().to_string(),
            ..Default::default()
        };
        let answer = NodeClient::new(channel(&self.endpoint())).node_get_volume_stats(request).await;
        answer.map(Response::into_inner)
    }

    fn identity(&self) -> IdentityClient<Channel> {
        IdentityClient::new(channel(&self.endpoint()))
    }

    /// Whether every file at a pod's target is the model's, byte for byte.
    fn is_right(&self, pod: &str) -> bool {
        let (shown, model) = (self.target(pod), &self.node.model);
        let same = |name: &String| {
            fs::read(shown.join(name)).unwrap() == fs::read(model.directory.join(name)).unwrap()
        };
        model.files.iter().all(same)
    }

    fn mounts(&self) -> usize {
        mounts::volumes_below(&self.node.place.at("kubelet")).len()
    }

    /// How the agent serves the volume of a pod, and how far it is.
    fn serving(&self, pod: &str) -> Option<(String, String)> {
        let answer = self.node.place.ask("mounts -o json").json();
        let target = self.target(pod).display().to_string();
        let volumes = answer["volumes"].as_array().unwrap();
        let volume = volumes.iter().find(|volume| volume["target"].as_str() == Some(&target))?;
        Some((volume["serving"].as_str()?.to_owned(), volume["state"].as_str()?.to_owned()))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the driver's log:\n{}", self.log());
        }
    }
}

fn channel(socket: &Path) -> Channel {
    Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap().connect_lazy()
}

fn capability(mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume::default())),
        access_mode: Some(AccessMode { mode: mode.into() }),
    }
}

#[track_caller]
fn refused(outcome: Result<(), Status>, code: Code, told: &[&str]) -> String {
    let status = outcome.unwrap_err();
    assert_eq!(status.code(), code, "{status:?}");
    let message = status.message();
    for words in told {
        assert!(message.contains(words), "{words:?} is not in: {message}");
    }
    assert!(!message.contains('\n') && message.len() < 1000, "{message}");
    message.to_owned()
}

/// As pods mostly ask for it, with bytes that can be compared.
const ORIGINAL: [(&str, &str); 1] = [("layout", "original")];
