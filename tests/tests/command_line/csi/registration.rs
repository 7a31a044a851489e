//! kubelet hears of the driver, and hears of it again when it has forgotten it.

use std::{fs, path::Path};

use tokio::net::UnixStream;
use tonic::Code;
use weightd_harness::{FakeGcs, ModelShape, require};
use weightd_proto::{
    csi::ProbeRequest,
    registration::{InfoRequest, PluginInfo, RegistrationStatus, registration_client::RegistrationClient},
};

use super::{Cluster, channel};
use crate::program::until;

/// What kubelet does when a socket appears: it asks who that is, and says what became of it.
async fn register(cluster: &Cluster, plugin_registered: bool) -> PluginInfo {
    let socket = cluster.registration();
    until("the driver offers itself", async || UnixStream::connect(&socket).await.ok()).await;
    let mut client = RegistrationClient::new(channel(&socket));
    let info = client.get_info(InfoRequest {}).await.unwrap().into_inner();
    let error = if plugin_registered { String::new() } else { "no such version".to_owned() };
    client.notify_registration_status(RegistrationStatus { plugin_registered, error }).await.unwrap();
    info
}

fn is_ready(cluster: &Cluster) -> bool {
    cluster.http("/ready").is_some_and(|(status, _)| status == 200)
}

fn is_registered(cluster: &Cluster) -> bool {
    cluster.http("/metrics").is_some_and(|(_, text)| text.contains("\nweightd_csi_registered 1\n"))
}

fn wipe(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kubelet_registers_the_driver_and_does_so_again_after_its_directory_was_wiped() {
    let gcs = require!(FakeGcs::start().await);
    let cluster = Cluster::new(&gcs, &gcs.endpoint(), &ModelShape::tiny(), "").await;
    let registry = cluster.node.place.at("kubelet/plugins_registry");
    let seen = "/var/lib/kubelet/plugins/csi.weightd.io/csi.sock";
    let flags = ["--registration-dir", registry.to_str().unwrap(), "--kubelet-endpoint-path", seen];
    let _agent = cluster.node.place.agent().await;
    let mut driver = cluster.driver(&flags).await;
    until("it is up", async || cluster.http("/ready")).await;
    let (status, why) = cluster.http("/ready").unwrap();
    assert!(status == 503 && why.contains("kubelet has not registered"), "{status} {why}");
    let info = register(&cluster, false).await;
    assert_eq!((info.r#type.as_str(), info.name.as_str()), ("CSIPlugin", "csi.weightd.io"));
    assert_eq!((info.endpoint.as_str(), info.supported_versions), (seen, vec!["1.0.0".to_owned()]));
    assert!(!is_ready(&cluster) && cluster.log().contains("no such version"));
    register(&cluster, true).await;
    assert!(is_ready(&cluster) && is_registered(&cluster));

    // One socket, all of the directory's, the directory itself, and the one that calls come by.
    for round in 0..3 {
        match round {
            0 => fs::remove_file(cluster.registration()).unwrap(),
            1 => wipe(&registry),
            _ => fs::remove_dir_all(&registry).unwrap(),
        }
        until("it offers itself anew", async || (!is_registered(&cluster)).then_some(())).await;
        assert!(!is_ready(&cluster));
        register(&cluster, true).await;
        assert!(is_ready(&cluster) && is_registered(&cluster));
    }
    fs::remove_dir_all(cluster.endpoint().parent().unwrap()).unwrap();
    until("calls come through again", async || cluster.identity().probe(ProbeRequest {}).await.ok()).await;
    assert!(is_registered(&cluster), "kubelet still knows it");
    let (_, text) = cluster.http("/metrics").unwrap();
    assert!(text.contains("\nweightd_csi_agent_reachable 1\n"), "{text}");
    let renewed =
        text.lines().find_map(|line| line.strip_prefix("weightd_csi_renewed_sockets_total ")).unwrap();
    assert_eq!(renewed, "4", "three of registration, one of calls");

    // A killed driver leaves its sockets; the next replaces them.
    driver.kill();
    assert!(cluster.registration().exists() && cluster.endpoint().exists());
    assert_eq!(cluster.identity().probe(ProbeRequest {}).await.unwrap_err().code(), Code::Unavailable);
    let _driver = cluster.driver(&flags).await;
    register(&cluster, true).await;
    assert!(is_ready(&cluster));
}
