//! The protocols of weightd: messages, client and server of its own, in `proto/weightd/v1`, and how errors travel in it; and
//! what Kubernetes speaks with a CSI driver.
//!
//! The Rust in `generated/` is committed and written by `cargo xtask generate`; a test there fails when it is
//! stale. Nothing here uses another room.

#[cfg(feature = "grpc")]
mod failure;
mod ranges;
mod secrets;

#[cfg(feature = "grpc")]
pub use failure::{MAX_MESSAGE_BYTES, MAX_STATUS_TEXT_BYTES, shortened};

/// `weightd.v1`: the agent's control interface.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated; documented in the .proto")]
pub mod v1 {
    include!("generated/weightd.v1.rs");
}

/// `csi.v1`: the Container Storage Interface, as far as the driver speaks it.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated; documented by the interface")]
pub mod csi {
    include!("generated/csi.v1.rs");
}

/// `pluginregistration`: how kubelet learns of a driver.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated; documented by kubelet")]
pub mod registration {
    include!("generated/pluginregistration.rs");
}
