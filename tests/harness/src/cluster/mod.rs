//! A real Kubernetes on one machine: etcd, API server, controllers, scheduler, kubelets, containerd and runc, without
//! Docker, a registry or the network.
//!
//! A node is a network, a mount and a process namespace, joined to the others by a bridge. It has its own `/var/lib`,
//! `/var/log` and `/run`; all else is the machine's. A process of its own, the [`runner`], brings a cluster up and takes
//! it down when whoever asked for it has ended, however that ended; what even a killed runner leaves behind, the next
//! one removes. So one cluster can be up at a time.
//!
//! `cargo xtask cluster` is the same by hand. Tests run on another cluster, such as one of kind's, where
//! `WEIGHTD_TEST_KUBECONFIG` names it: see [`given`].

mod built;
mod cgroups;
mod children;
mod control_plane;
mod given;
mod handle;
pub mod image;
pub mod install;
mod keys;
pub mod kubernetes;
mod network;
mod node;
mod place;
pub mod provisioner;
pub mod runner;

pub use handle::{Cluster, Node};
