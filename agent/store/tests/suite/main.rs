//! The store through its public face, in process: what opening refuses, what crashes cost, who is evicted, what rots.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    reason = "a test may panic and sleep"
)]

mod arriving;
mod common;
mod eviction;
mod full_disk;
mod links;
mod metrics;
mod model;
mod opening;
mod power;
mod removing;
mod rot;
