//! Against a real Kubernetes API server, with a real agent in this process. The node is an object without a machine, made
//! for each test, so that no pod runs on it.
//!
//! `WEIGHTD_TEST_KUBECONFIG` names a configuration with an administrator's rights; without it these tests skip.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test may panic, sleep, and say why it is skipped"
)]

mod cluster;
mod metrics;
mod models;
mod taint;
