//! What this room counts.

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

/// What this room counts. Clones share the counts.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Volumes mounted now.
    pub volumes: Gauge,
    /// Reads that the agent answered.
    pub reads: Counter,
    /// Bytes it answered them with.
    pub read_bytes: Counter,
    /// Reads that failed.
    pub failed_reads: Counter,
    /// Chunks read and checked for readers.
    pub served_chunks: Counter,
    /// Times a reader had to ask for bytes that were not here.
    pub demands: Counter,
    /// Files opened straight from their blobs.
    pub passthrough_opens: Counter,
    /// Bytes that were read into the page cache ahead of readers.
    pub warmed_bytes: Counter,
    /// Clients that have tensors in shared memory.
    pub leases: Gauge,
    /// Bytes of tensors in shared memory.
    pub resident_bytes: Gauge,
}

impl Metrics {
    /// Registers everything, named `weightd_expose_…`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("weightd_expose");
        registry.register("volumes", "Volumes mounted now", self.volumes.clone());
        registry.register("reads", "Reads that the agent answered", self.reads.clone());
        registry.register("read_bytes", "Bytes the agent answered reads with", self.read_bytes.clone());
        registry.register("failed_reads", "Reads that failed", self.failed_reads.clone());
        registry.register("served_chunks", "Chunks read and checked for readers", self.served_chunks.clone());
        registry.register(
            "demands",
            "Times a reader asked for bytes that were not here",
            self.demands.clone(),
        );
        registry.register(
            "passthrough_opens",
            "Files opened straight from their blobs",
            self.passthrough_opens.clone(),
        );
        registry.register(
            "warmed_bytes",
            "Bytes read into the page cache ahead of readers",
            self.warmed_bytes.clone(),
        );
        registry.register("leases", "Clients that have tensors in shared memory", self.leases.clone());
        registry.register(
            "resident_bytes",
            "Bytes of memory for tensors that processes share",
            self.resident_bytes.clone(),
        );
    }
}
