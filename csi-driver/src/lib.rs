//! `weightd-csi`: the CSI driver of a node. A pod spec names a model and finds it mounted.
//!
//! It keeps nothing: what is mounted is the mount table's to say, and what a volume is made of is in its id and its
//! attributes. All work on weights is the agent's, which it reaches by the agent's socket. Reading order: `attributes`,
//! `pod`, `volume_id` and `capability` say what is asked for and touch nothing; `turns` orders what is done to one target;
//! `agent` asks the agent; `node`, `controller` and `identity` are the services; `registration` tells kubelet;
//! `driver` joins them.

mod agent;
mod attributes;
mod calls;
mod capability;
mod controller;
mod driver;
mod error;
mod http;
mod identity;
mod metrics;
mod mounts;
mod node;
mod options;
mod pod;
mod registration;
mod serve;
mod socket;
mod target;
mod turns;
mod volume_id;

pub use driver::Driver;
pub use error::StartError;
pub use options::{InvalidOption, Options};

/// The driver's name, as pod specs and the CSIDriver object have it.
pub const DRIVER: &str = "csi.weightd.io";
