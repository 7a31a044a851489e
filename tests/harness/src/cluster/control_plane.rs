//! etcd, the API server, the controllers and the scheduler, on this machine.

use std::{fs, path::Path, process::Child};

use anyhow::Result;

use super::{
    children::{self, start, until_up},
    keys::Keys,
    kubernetes::Kubernetes,
    place::{API, Place, SERVICES},
};
use crate::net;

/// Starts all of it, and waits until the API server is ready.
pub(super) fn start_all(
    place: &Place,
    kubernetes: &Kubernetes,
    keys: &Keys,
    more: &[String],
) -> Result<Vec<Child>> {
    fs::create_dir_all(place.at("log"))?;
    let client = format!("http://127.0.0.1:{}", net::unused_port()?);
    let begin = |name: &str, arguments: &[String]| -> Result<Child> {
        start(&place.log(name), &kubernetes.program(name), arguments)
    };
    let etcd = begin("etcd", &etcd(place, &client)?)?;
    let mut server = begin("kube-apiserver", &api_server(keys, &client, more))?;
    until_up("the API server is ready", &mut server, &place.log("kube-apiserver"), || {
        let mut ask = kubernetes.kubectl(&place.admin());
        children::output(ask.args(["get", "--raw", "/readyz", "--request-timeout=5s"])).map(drop)
    })?;
    let controllers = begin("kube-controller-manager", &controllers(place, keys))?;
    let scheduler = begin("kube-scheduler", &client_of(place))?;
    Ok(vec![scheduler, controllers, server, etcd])
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn etcd(place: &Place, client: &str) -> Result<Vec<String>> {
    let peer = format!("http://127.0.0.1:{}", net::unused_port()?);
    let data = place.at("etcd");
    // Nobody misses what a killed etcd had not written.
    Ok(words(&format!(
        "--data-dir {} --unsafe-no-fsync --listen-client-urls {client} --advertise-client-urls {client} \
         --listen-peer-urls {peer} --initial-advertise-peer-urls {peer} --initial-cluster default={peer}",
        data.display()
    )))
}

fn api_server(keys: &Keys, etcd: &str, more: &[String]) -> Vec<String> {
    let file = |path: &Path| path.display().to_string();
    let mut arguments = words(&format!(
        "--etcd-servers={etcd} --bind-address={API} --advertise-address={API} --secure-port=443 \
         --service-cluster-ip-range={SERVICES} --service-account-issuer=https://kubernetes.default.svc \
         --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
         --kubelet-preferred-address-types=InternalIP --enable-priority-and-fairness=false"
    ));
    for (flag, path) in [
        ("tls-cert-file", &keys.certificate),
        ("tls-private-key-file", &keys.key),
        ("token-auth-file", &keys.tokens),
        ("service-account-key-file", &keys.accounts_public),
        ("service-account-signing-key-file", &keys.accounts),
    ] {
        arguments.push(format!("--{flag}={}", file(path)));
    }
    arguments.extend_from_slice(more);
    arguments
}

fn client_of(place: &Place) -> Vec<String> {
    let admin = place.admin();
    words(&format!("--kubeconfig={} --leader-elect=false --secure-port=0", admin.display()))
}

fn controllers(place: &Place, keys: &Keys) -> Vec<String> {
    let mut arguments = client_of(place);
    arguments.extend(words(&format!(
        "--service-account-private-key-file={} --root-ca-file={} --use-service-account-credentials=true",
        keys.accounts.display(),
        keys.authority.display()
    )));
    arguments
}
