//! Where everything of a cluster is: its files, its addresses, its names.

use std::{
    env, fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::Result;

/// The bridge that nodes hang on.
pub(super) const BRIDGE: &str = "weightd0";
/// This machine on the bridge. The range is the one for measuring devices (RFC 2544): nothing else uses it.
pub(super) const HOST: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The API server: the first address of the services' range, which the service `kubernetes` gets. So clients in pods
/// find it although nothing here turns services' addresses into others.
pub(super) const API: Ipv4Addr = Ipv4Addr::new(198, 18, 255, 1);
/// Addresses of services.
pub(super) const SERVICES: &str = "198.18.255.0/24";
/// The cgroup below which nodes have theirs.
pub(super) const CGROUP: &str = "weightd-cluster";

/// The name of node `number`, counted from 1.
pub(super) fn node_name(number: u8) -> String {
    format!("node{number}")
}

/// Its address on the bridge.
pub(super) fn node_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, 0, 10 + number)
}

/// The addresses of its pods.
pub(super) fn pods_of(number: u8) -> String {
    format!("198.19.{number}.0/24")
}

/// The directory of the one cluster that can be up.
#[derive(Debug, Clone)]
pub(super) struct Place(PathBuf);

impl Place {
    pub(super) fn new() -> Self {
        Self(env::temp_dir().join("weightd-cluster"))
    }

    pub(super) fn directory(&self) -> &Path {
        &self.0
    }

    pub(super) fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Held as long as a cluster is up. Not in the directory, because that is removed.
    pub(super) fn lock() -> Result<PathBuf> {
        Ok(super::built::cache()?.join("cluster.lock"))
    }

    /// For whoever may do everything.
    pub(super) fn admin(&self) -> PathBuf {
        self.at("admin.kubeconfig")
    }

    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.at("log").join(format!("{name}.log"))
    }

    pub(super) fn node(&self, number: u8) -> PathBuf {
        self.at(&node_name(number))
    }

    /// The process whose namespaces are the node's.
    pub(super) fn holder(&self, number: u8) -> Option<u32> {
        fs::read_to_string(self.node(number).join("holder")).ok()?.trim().parse().ok()
    }
}
