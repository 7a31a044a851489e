//! A cluster that ends leaves nothing of itself behind, however it ends.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{fs, path::Path, process::Command};

use weightd_harness::{
    cluster::{Cluster, runner::Wanted},
    require,
};

#[test]
fn nothing_is_left_of_a_cluster_that_ended() {
    let wanted = Wanted { nodes: 1, labels: vec!["test/label=there".to_owned()], ..Wanted::default() };
    let cluster = require!(Cluster::start(&wanted));
    let asked = cluster.kubectl().args(["get", "nodes", "-l", "test/label=there", "-o", "name"]).output();
    assert_eq!(String::from_utf8(asked.unwrap().stdout).unwrap(), "node/node1\n");
    let nodes = cluster.nodes().unwrap();
    let own = cluster.command(&nodes[0], "findmnt").arg("/var/lib").output().unwrap();
    assert!(own.status.success(), "a node has its own /var/lib");
    cluster.restart_kubelet(&nodes[0]).unwrap();
    let directory = cluster.directory();
    assert!(directory.exists() && !remains().is_empty());
    drop(cluster);
    assert_eq!(remains(), Vec::<String>::new());
    assert!(!directory.exists());
}

/// Mounts, links, cgroups and processes of clusters on this machine.
fn remains() -> Vec<String> {
    let ours = |text: &str| {
        text.lines()
            .filter(|line| line.contains("weightd-cluster") || line.contains("weightd0"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let said =
        |command: &mut Command| String::from_utf8_lossy(&command.output().unwrap().stdout).into_owned();
    let mut found = ours(&fs::read_to_string("/proc/self/mountinfo").unwrap());
    found.extend(ours(&said(Command::new("ip").args(["-brief", "link"]))));
    found.extend(ours(&said(Command::new("ip").arg("route"))));
    found.extend(ours(&said(Command::new("pgrep").args(["--list-full", "kube|etcd|containerd"]))));
    for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        if Path::new(&hierarchy.path()).join("weightd-cluster").exists() {
            found.push(hierarchy.path().display().to_string());
        }
    }
    found
}
