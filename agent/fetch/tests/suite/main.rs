//! Fetching through its public face, in process: from an origin in memory, through faults on purpose, into a real store.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    clippy::type_complexity,
    reason = "a test may panic, sleep, and say why it is skipped"
)]

mod common;
mod content;
mod faults;
mod flights;
mod held_disk;
mod metrics;
mod prefetch;
mod resuming;
mod scrub;
mod verify;
