//! What fetching counts. Names begin with `weightd_fetch_`.

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

/// What fetching counts.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    pub(crate) fetched_bytes: Counter,
    pub(crate) requests: Counter,
    pub(crate) retries: Counter,
    pub(crate) hedges: Counter,
    pub(crate) throttled: Counter,
    pub(crate) mismatches: Counter,
    pub(crate) completed: Counter,
    pub(crate) failed: Counter,
    pub(crate) requests_in_flight: Gauge,
    pub(crate) request_limit: Gauge,
    pub(crate) scrubbed_chunks: Counter,
    pub(crate) scrub_bad_chunks: Counter,
    pub(crate) scrub_repaired_chunks: Counter,
    pub(crate) scrub_round_ended: Gauge,
}

impl Metrics {
    /// Bytes received from origins.
    pub fn fetched_bytes(&self) -> u64 {
        self.fetched_bytes.get()
    }

    /// Adds them to a registry under the prefix `weightd_fetch`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("weightd_fetch");
        let counters = [
            ("fetched_bytes", "Bytes received from origins", &self.fetched_bytes),
            ("requests", "Data requests to origins", &self.requests),
            ("retries", "Requests made again after a failure", &self.retries),
            ("hedges", "Second requests beside one that stalled", &self.hedges),
            ("throttled", "Answers that asked to slow down", &self.throttled),
            ("checksum_mismatches", "Objects that did not match their checksum", &self.mismatches),
            ("completed_snapshots", "Prefetches that ended with a complete snapshot", &self.completed),
            ("failed_snapshots", "Prefetches that failed", &self.failed),
            ("scrubbed_chunks", "Stored chunks that the scrub read", &self.scrubbed_chunks),
            ("scrub_bad_chunks", "Stored chunks that the scrub found damaged", &self.scrub_bad_chunks),
            ("scrub_repaired_chunks", "Those of them that were fetched again", &self.scrub_repaired_chunks),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        let gauges = [
            ("requests_in_flight", "Data requests in flight", &self.requests_in_flight),
            ("request_limit", "Data requests that may be in flight", &self.request_limit),
            (
                "scrub_round_end_time_seconds",
                "When the scrub had last read all that is stored, in seconds since 1970; 0 for never",
                &self.scrub_round_ended,
            ),
        ];
        for (name, help, gauge) in gauges {
            registry.register(name, help, gauge.clone());
        }
    }
}
