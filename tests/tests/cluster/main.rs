//! weightd as it is installed, on a real Kubernetes of two nodes: kubelet, its pods and their volumes.
//!
//! All tests share one cluster, which takes ten seconds to start, and take turns on it. It ends with this program.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test may panic, sleep, and say why it is skipped"
)]

mod chaos;
mod faults;
mod identity;
mod manifests;
mod models;
mod origin;
mod pods;
mod provisioning;
mod tiers;
mod wanted;
mod world;
mod yaml;
