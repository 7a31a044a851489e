//! The hand-off, at an agent that these tests play: one that keeps to the protocol, one that ends, and one that lies.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test may panic")]
#![allow(clippy::single_range_in_vec_init, reason = "what is waited for is a list of ranges")]

mod agent;
mod hostile;
mod opening;
mod resuming;
mod streaming;
mod waiting;
