//! What the agent itself tells; the rooms add theirs.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::{
    metrics::{gauge::Gauge, info::Info},
    registry::Registry,
};

/// Adds them to a registry.
pub(crate) fn register(registry: &mut Registry) {
    let registry = registry.sub_registry_with_prefix("weightd_agent");
    registry.register("build", "The program", Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]));
    let started: Gauge = Gauge::default();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    started.set(i64::try_from(now).unwrap_or(i64::MAX));
    registry.register("start_time_seconds", "When it started, in seconds since 1970", started);
}
