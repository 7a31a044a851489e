//! Who may read what.
//!
//! A volume of a pod is given only what the pod's own identity may read, also when the bytes are here already. So the
//! origin is asked with the pod's credential before a volume is made ([`Access::admit`]), and what it answers counts until
//! that credential ends. Fetching asks as someone who is there: a pod whose volume is mounted, or the operator
//! ([`Access::opener`]). When nobody is there, it pauses; it never falls back to the node's identity.
//!
//! What pods may have the node do is bounded: a web server that they may name leads them to no other address, and they pin
//! only where the operator says so.
//!
//! Nothing here is written to a disk, and secrets are never shown.

mod access;
mod config;
mod error;
mod exchange;
mod files;
mod gate;
mod grants;
mod holders;
mod identity;
mod metrics;
mod pod;
#[cfg(test)]
mod tests;
mod web;

pub use access::{Access, Admission};
pub use config::{Config, Exchange, WhoReads};
pub use error::AccessError;
pub use files::is_pattern;
pub use holders::Lease;
pub use metrics::Metrics;
pub use pod::{Pod, Token};
