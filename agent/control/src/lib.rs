//! The gRPC services of the agent: what clients ask, in terms of the store and fetch rooms.
//!
//! Every call may be repeated. Errors become [`tonic::Status`] in one place, [`failure`], with a `Failure` in the
//! details that says what the caller can do.

pub mod failure;
mod info;
mod jobs;
mod leases;
mod loads;
mod pods;
mod prefetch;
mod service;
#[cfg(test)]
mod tests;
mod verify;
mod volumes;

pub use loads::Loads;
pub use service::Control;
