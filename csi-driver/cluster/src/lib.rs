//! What a node's agent is told by the Kubernetes API, and tells it.
//!
//! ConfigMaps say which models a node is to have; the agent is told, and brings and keeps them. How they stand becomes
//! the node's condition `WeightsReady`, and a startup taint goes once the driver is registered. All of it converges: each
//! turn looks at what the API and the agent say now, so that nothing depends on having seen every change, and either may
//! be away. Reading order: `models`, `lists` and `wanted` (what is to be here), `condition` and `taint` (what is said),
//! all without IO; `mirror`, `api`, `events`, `node`, `pauses`; `run` joins them.

mod api;
mod condition;
mod error;
mod events;
mod lists;
mod metrics;
mod mirror;
mod models;
mod node;
mod pauses;
mod run;
mod taint;
mod wanted;

pub use api::client;
pub use condition::TYPE as CONDITION;
pub use error::ClusterError;
pub use kube::Client as Api;
pub use lists::LABEL;
pub use metrics::Metrics;
pub use models::KEY;
pub use run::{Options, run};
pub use taint::TAINT;
