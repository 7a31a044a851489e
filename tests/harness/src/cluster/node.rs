//! A node: namespaces of its own on this machine, containerd and kubelet in them.

use std::{
    ffi::OsStr,
    fs,
    path::Path,
    process::{Child, Command},
};

use anyhow::{Context, Result};

use super::{
    cgroups,
    children::{self, output, start, until, until_up},
    keys,
    kubernetes::Kubernetes,
    network,
    place::{Place, node_address, node_name, pods_of},
};

/// Where containerd listens, in every node's own `/run`.
const CONTAINERD: &str = "/run/containerd/containerd.sock";

/// What nodes are started with beside what every one needs.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    /// `key=value`, as kubelet registers them.
    pub(super) labels: Vec<String>,
    /// `key=value:effect`.
    pub(super) taints: Vec<String>,
}

/// Starts a node, and gives the processes that end it when they end. It has nothing in it yet.
pub(super) fn hold(place: &Place, number: u8) -> Result<Child> {
    let directory = place.node(number);
    for own in ["lib/kubelet", "lib/weightd", "log/pods", "log/containers", "cni", "mnt"] {
        fs::create_dir_all(directory.join(own))?;
    }
    // What stands here is pid 1 of the node: who ends below it is nobody's child, and must not stay as a zombie.
    let script =
        "set -e; cd \"$0\"; mount --make-rshared /; mount --bind lib /var/lib; mount --bind log /var/log
        mount --bind mnt /mnt
        mount -t tmpfs -o mode=755 run /run; echo 1 >/proc/sys/net/ipv4/ip_forward
        : >held; exec env --ignore-signal=CHLD sleep infinity";
    let words = "--net --mount --propagation private --pid --mount-proc --fork --kill-child sh -c";
    let mut words: Vec<String> = words.split(' ').map(str::to_owned).collect();
    words.extend([script.to_owned(), directory.display().to_string()]);
    let log = place.log(&node_name(number));
    let mut holder = start(&log, Path::new("unshare"), &words)?;
    until_up("the node is there", &mut holder, &log, || {
        fs::metadata(directory.join("held"))
            .map(drop)
            .context("the node's first process has not got that far")
    })?;
    network::join(number, holder.id())?;
    cgroups::make(number)?;
    fs::write(directory.join("holder"), holder.id().to_string())?;
    Ok(holder)
}

/// A command in a node's namespaces.
pub(super) fn command(holder: u32, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    // The holder's own children, and not itself, are in its process namespace.
    command.args(["--target", &holder.to_string(), "--mount", "--net"]);
    command.arg(format!("--pid=/proc/{holder}/ns/pid_for_children")).arg("--").arg(program);
    command
}

/// Starts containerd, loads images, and starts kubelet.
pub(super) fn start_all(
    place: &Place,
    kubernetes: &Kubernetes,
    number: u8,
    wishes: &Wishes,
    images: &[std::path::PathBuf],
) -> Result<()> {
    let holder = place.holder(number).context("the node's first process has ended")?;
    let directory = place.node(number);
    fs::write(directory.join("cni/10-pods.conflist"), pod_network(number))?;
    fs::write(directory.join("containerd.toml"), containerd(&directory))?;
    fs::write(directory.join("kubelet.yaml"), kubelet(number))?;
    fs::write(directory.join("kubelet.sh"), kubelet_script(place, kubernetes, number, wishes))?;
    let log = place.log(&format!("{}-containerd", node_name(number)));
    let words = fs::File::create(&log)?;
    let mut containerd = command(holder, "containerd");
    containerd.arg("--config").arg(directory.join("containerd.toml"));
    // Its end is the node's: what is below a node's first process ends with that.
    containerd.stdin(std::process::Stdio::null()).stdout(words.try_clone()?).stderr(words).spawn()?;
    until("containerd answers", || {
        output(command(holder, "ctr").arg("version"))
            .with_context(|| format!("see {}", log.display()))
            .map(drop)
    })?;
    for image in images {
        load(holder, image)?;
    }
    restart_kubelet(&directory, holder)
}

/// Loads an image.
pub(super) fn load(holder: u32, archive: &Path) -> Result<()> {
    let mut ctr = command(holder, "ctr");
    output(ctr.args(["--namespace", "k8s.io", "images", "import", "--no-unpack"]).arg(archive)).map(drop)
}

/// Starts kubelet; ends the one that runs first.
pub(super) fn restart_kubelet(directory: &Path, holder: u32) -> Result<()> {
    children::output(command(holder, "sh").arg(directory.join("kubelet.sh"))).map(drop)
}

fn pod_network(number: u8) -> String {
    let pods = pods_of(number);
    format!(
        r#"{{"cniVersion": "0.4.0", "name": "pods", "plugins": [{{"type": "ptp", "mtu": 1500, "ipam": {{
  "type": "host-local", "dataDir": "/run/cni", "subnet": "{pods}", "routes": [{{"dst": "0.0.0.0/0"}}]}}}}]}}"#
    )
}

/// A root without CAP_SYS_RESOURCE cannot make processes less likely to be killed than it is itself.
fn containerd(directory: &Path) -> String {
    format!(
        "version = 2\n[grpc]\naddress = \"{CONTAINERD}\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\"]\nrestrict_oom_score_adj = true\nsandbox_image = \"{}\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/usr/lib/cni\"\nconf_dir = \"{}\"\n",
        super::image::PAUSE,
        directory.join("cni").display()
    )
}

fn kubelet(number: u8) -> String {
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
         containerRuntimeEndpoint: unix://{CONTAINERD}\n\
         cgroupDriver: cgroupfs\ncgroupRoot: {}\nfailCgroupV1: false\nfailSwapOn: false\nreadOnlyPort: 0\n\
         authentication: {{anonymous: {{enabled: true}}, webhook: {{enabled: false}}}}\n\
         authorization: {{mode: AlwaysAllow}}\n\
         imageGCHighThresholdPercent: 100\nlocalStorageCapacityIsolation: false\n\
         evictionHard: {{memory.available: \"100Mi\"}}\n\
         syncFrequency: 5s\nnodeStatusUpdateFrequency: 4s\n",
        cgroups::name(number)
    )
}

fn kubelet_script(place: &Place, kubernetes: &Kubernetes, number: u8, wishes: &Wishes) -> String {
    let name = node_name(number);
    format!(
        "if [ -e /run/kubelet.pid ]; then\n\
         kill \"$(cat /run/kubelet.pid)\"; while kill -0 \"$(cat /run/kubelet.pid)\" 2>/dev/null; do sleep 0.1; done\n\
         fi\n\
         setsid {} --config={} --kubeconfig={} --root-dir=/var/lib/kubelet --hostname-override={name} \\\n\
         --node-ip={} --node-labels='{}' --register-with-taints='{}' --v=2 </dev/null >>{} 2>&1 &\n\
         echo $! >/run/kubelet.pid\n",
        kubernetes.program("kubelet").display(),
        place.node(number).join("kubelet.yaml").display(),
        keys::kubelets(place, number).display(),
        node_address(number),
        wishes.labels.join(","),
        wishes.taints.join(","),
        place.log(&format!("{name}-kubelet")).display(),
    )
}
