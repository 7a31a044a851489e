//! The bridge between nodes, and this machine's place on it.

use std::{
    fs,
    process::{Command, Stdio},
};

use anyhow::Result;

use super::{
    children::run,
    place::{API, BRIDGE, HOST, node_address, pods_of},
};

/// Makes the bridge.
pub(super) fn make() -> Result<()> {
    run(&format!("ip link add {BRIDGE} type bridge"))?;
    run(&format!("ip addr add {HOST}/24 dev {BRIDGE}"))?;
    run(&format!("ip addr add {API}/32 dev {BRIDGE}"))?;
    run(&format!("ip link set {BRIDGE} up"))
}

/// Joins the network of the process `holder` to it, and makes the way to the node's pods known here.
pub(super) fn join(number: u8, holder: u32) -> Result<()> {
    run(&format!("ip link add weightd0-{number} type veth peer name eth0 netns {holder}"))?;
    run(&format!("ip link set weightd0-{number} master {BRIDGE} up"))?;
    let within = format!("nsenter --target {holder} --net ip");
    run(&format!("{within} link set lo up"))?;
    run(&format!("{within} addr add {}/24 dev eth0", node_address(number)))?;
    run(&format!("{within} link set eth0 up"))?;
    run(&format!("{within} route add default via {HOST}"))?;
    run(&format!("ip route add {} via {}", pods_of(number), node_address(number)))
}

/// Tells a node the way to the pods of the others.
pub(super) fn introduce(number: u8, holder: u32, nodes: u8) -> Result<()> {
    for other in (1..=nodes).filter(|other| *other != number) {
        let way = format!("{} via {}", pods_of(other), node_address(other));
        run(&format!("nsenter --target {holder} --net ip route add {way}"))?;
    }
    Ok(())
}

/// Removes the bridge and its ends. Those go with their nodes, too, but not at once.
pub(super) fn remove() {
    let links = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    for name in links.map(|link| link.file_name()).filter(|name| name.to_string_lossy().starts_with(BRIDGE)) {
        // One that is not there any more is gone.
        let _ = Command::new("ip").args(["link", "delete"]).arg(name).stderr(Stdio::null()).status();
    }
}
