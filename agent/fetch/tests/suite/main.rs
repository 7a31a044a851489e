//! Fetching through its public face, in process: from an origin in memory, through faults on purpose, into a real store.

mod common;
mod content;
mod faults;
mod flights;
mod metrics;
mod prefetch;
mod verify;
