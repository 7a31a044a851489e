//! The agent at its own interface: gRPC in process, origins in memory, a store in a temporary directory.

mod calls;
mod detached;
mod ending;
mod harness;
mod outside;
