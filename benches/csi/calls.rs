//! The driver, the agent and the keeper of a node, called as kubelet calls.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use tonic::transport::{Channel, Endpoint};
use weightd_benches::{BUCKET, Bucket, Node, Process, SOURCE, binary, wait_until};
use weightd_proto::csi::{
    NodePublishVolumeRequest, NodeUnpublishVolumeRequest, VolumeCapability,
    node_client::NodeClient,
    volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode},
};

/// Models that the node has never heard of: enough for a 99th percentile.
const UNKNOWN: usize = 100;
/// Pods that come at once.
pub(crate) const PODS: usize = 100;
const PATIENCE: Duration = Duration::from_secs(20);

/// How long calls took, in seconds.
#[derive(Debug, Default)]
pub(crate) struct Times {
    /// Of each model that the node had never heard of.
    pub(crate) unknown: Vec<f64>,
    /// Of all [`PODS`] together, each round.
    pub(crate) at_once: Vec<f64>,
}

/// A node's driver, and where its kubelet's files would be.
struct Driver {
    kubelet: PathBuf,
    channel: Channel,
    _process: Process,
}

/// Measures calls.
pub(crate) async fn measure(directory: &Path, bucket: &Bucket, rounds: usize) -> Result<Times> {
    let place = directory.join("csi");
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    let node = Node::start(&place, &bucket.gcs.endpoint(), "")?;
    let driver = Driver::start(&node)?;
    let mut times = Times { unknown: unknown(&driver, bucket).await?, at_once: Vec::new() };
    node.mount("complete", &["--wait"])?;
    for round in 1..=rounds {
        eprintln!("{PODS} pods at once, round {round}");
        times.at_once.push(at_once(&driver).await?);
    }
    Ok(times)
}

/// How long a pod waits for the files of a model that the node hears of for the first time. The ones before are let go at
/// once, and may still be arriving, as on a node where pods come and go.
async fn unknown(driver: &Driver, bucket: &Bucket) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    for at in 0..UNKNOWN {
        bucket.gcs.place_directory(BUCKET, &format!("m{at}"), &bucket.model.directory)?;
        let (pod, source) = (format!("unknown-{at}"), format!("gs://{BUCKET}/m{at}"));
        let began = Instant::now();
        driver.publish(&pod, &source).await?;
        times.push(began.elapsed().as_secs_f64());
        let shown = driver.target(&pod).join(&bucket.model.files[0]);
        ensure!(shown.is_file(), "{} is not there", shown.display());
        driver.unpublish(&pod).await?;
    }
    Ok(times)
}

async fn at_once(driver: &Driver) -> Result<f64> {
    let pods: Vec<String> = (0..PODS).map(|at| format!("pod-{at}")).collect();
    let began = Instant::now();
    try_join_all(pods.iter().map(|pod| driver.publish(pod, SOURCE))).await?;
    let time = began.elapsed().as_secs_f64();
    try_join_all(pods.iter().map(|pod| driver.unpublish(pod))).await?;
    Ok(time)
}

impl Driver {
    fn start(node: &Node) -> Result<Self> {
        let kubelet = node.target("kubelet");
        let socket = kubelet.join("plugins/csi.weightd.io/csi.sock");
        fs::create_dir_all(socket.parent().context("it is below kubelet's directory")?)?;
        let mut command = Command::new(binary("weightd-csi")?);
        command.arg("--endpoint").arg(format!("unix://{}", socket.display()));
        command.arg("--agent").arg(node.socket()).args(["--node-id", "bench", "--http-address", "off"]);
        command.arg("--kubelet-directory").arg(&kubelet);
        let process = Process::start(&mut command, &node.target("driver.log"))?;
        ensure!(wait_until(PATIENCE, || socket.exists()), "the driver does not listen");
        let channel = Endpoint::from_shared(format!("unix://{}", socket.display()))?.connect_lazy();
        Ok(Self { kubelet, channel, _process: process })
    }

    fn target(&self, pod: &str) -> PathBuf {
        let volume = Path::new("volumes/kubernetes.io~csi/weights/mount");
        self.kubelet.join("pods").join(pod).join(volume)
    }

    async fn publish(&self, pod: &str, source: &str) -> Result<()> {
        let request = NodePublishVolumeRequest {
            volume_id: format!("csi-{pod}"),
            target_path: self.target(pod).display().to_string(),
            volume_capability: Some(VolumeCapability {
                access_type: Some(AccessType::Mount(MountVolume::default())),
                access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
            }),
            volume_context: HashMap::from([("source".to_owned(), source.to_owned())]),
            ..NodePublishVolumeRequest::default()
        };
        NodeClient::new(self.channel.clone()).node_publish_volume(request).await?;
        Ok(())
    }

    async fn unpublish(&self, pod: &str) -> Result<()> {
        let target_path = self.target(pod).display().to_string();
        let request = NodeUnpublishVolumeRequest { volume_id: format!("csi-{pod}"), target_path };
        NodeClient::new(self.channel.clone()).node_unpublish_volume(request).await?;
        Ok(())
    }
}
