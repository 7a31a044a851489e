//! The agent at its own interface: gRPC in process, origins in memory, a store in a temporary directory.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod calls;
mod detached;
mod ending;
mod harness;
mod outside;
