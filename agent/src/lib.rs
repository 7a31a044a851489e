//! `weightd`, the node agent: joins the rooms, and shows them to the outside.
//!
//! The agent is a library with a small binary around it, so that `weightctl --store DIR` and tests run the very
//! same agent inside their own process: [`Agent::start`] opens the store and [`Agent::connect`] speaks gRPC to it
//! over an in-memory pipe; [`Agent::listen`] adds the Unix socket and the HTTP port.

mod agent;
mod config;
mod error;
mod http;
mod metrics;
mod serve;
mod tiers;

pub use agent::Agent;
pub use config::{Config, ConfigError, Mistake, Overrides};
pub use error::StartError;
pub use tiers::TierConfig;
pub use weightd_control::failure;
