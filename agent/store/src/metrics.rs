//! What the store counts. Names begin with `weightd_store_`.

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

use crate::Store;

/// What the store counts.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    pub(crate) committed_blobs: Counter,
    pub(crate) published_snapshots: Counter,
    pub(crate) evicted_snapshots: Counter,
    pub(crate) checked_chunks: Counter,
    pub(crate) bad_chunks: Counter,
    pub(crate) repaired_chunks: Counter,
    used_bytes: Gauge,
    reserved_bytes: Gauge,
    free_bytes: Gauge,
    buffers: Gauge,
    snapshots: Gauge,
}

impl Metrics {
    /// Adds them to a registry under the prefix `weightd_store`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("weightd_store");
        let counters = [
            ("committed_blobs", "Blobs made complete", &self.committed_blobs),
            ("published_snapshots", "Snapshots made complete", &self.published_snapshots),
            ("evicted_snapshots", "Snapshots evicted to make room", &self.evicted_snapshots),
            ("checked_chunks", "Stored chunks read and checked", &self.checked_chunks),
            ("bad_chunks", "Stored chunks found damaged", &self.bad_chunks),
            ("repaired_chunks", "Damaged chunks repaired from the origin", &self.repaired_chunks),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        let gauges = [
            ("used_bytes", "Bytes of blob files", &self.used_bytes),
            ("reserved_bytes", "Bytes promised to transfers and not allocated yet", &self.reserved_bytes),
            ("free_bytes", "Bytes free on the store's file system", &self.free_bytes),
            ("buffers_in_use", "Chunk buffers that hold bytes right now", &self.buffers),
            ("snapshots", "Complete snapshots", &self.snapshots),
        ];
        for (name, help, gauge) in gauges {
            registry.register(name, help, gauge.clone());
        }
    }
}

impl Store {
    /// Brings the gauges up to date, before they are read.
    pub async fn refresh_metrics(&self) {
        let metrics = self.metrics();
        if let Ok(usage) = self.usage().await {
            metrics.used_bytes.set(gauge(usage.used));
            metrics.reserved_bytes.set(gauge(usage.reserved));
            metrics.free_bytes.set(gauge(usage.free));
        }
        metrics.buffers.set(gauge(self.pool().in_use() as u64));
        metrics.snapshots.set(gauge(self.snapshots().iter().filter(|record| record.complete).count() as u64));
    }
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
