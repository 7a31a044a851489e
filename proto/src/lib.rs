//! The protocol of weightd: messages, client and server of `proto/weightd/v1`, and how errors travel in it.
//!
//! The Rust in `generated/` is committed and written by `cargo xtask generate`; a test there fails when it is
//! stale. Nothing here uses another room.

mod failure;

pub use failure::{MAX_MESSAGE_BYTES, MAX_STATUS_TEXT_BYTES};

/// `weightd.v1`: the agent's control interface.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated; documented in the .proto")]
pub mod v1 {
    include!("generated/weightd.v1.rs");
}
