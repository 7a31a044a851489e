//! The store through its public face, in process: what opening refuses, what crashes cost, who is evicted, what rots.

mod common;
mod eviction;
mod full_disk;
mod metrics;
mod model;
mod opening;
mod power;
mod rot;
