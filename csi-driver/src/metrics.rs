//! What the driver counts. Names begin with `weightd_csi_`.

use std::{fmt, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, LabelSetEncoder},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use tonic::Code;

/// From what a cached answer takes to kubelet's deadline.
const SECONDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 15.0, 60.0, 120.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Call {
    method: &'static str,
    code: Code,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Method(&'static str);

/// What the driver counts.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    calls: Family<Call, Counter>,
    durations: Family<Method, Histogram, fn() -> Histogram>,
    /// Whether kubelet has taken the driver.
    pub(crate) registered: Gauge,
    /// Sockets that were made anew because someone took them away.
    pub(crate) renewed_sockets: Counter,
    /// Whether the agent answered when it was last asked.
    pub(crate) agent_reachable: Gauge,
    /// What was mounted at a target that no agent knew.
    pub(crate) removed_leftovers: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            calls: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            registered: Gauge::default(),
            renewed_sockets: Counter::default(),
            agent_reachable: Gauge::default(),
            removed_leftovers: Counter::default(),
        }
    }
}

impl Metrics {
    /// Adds them to a registry under the prefix `weightd_csi`.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("weightd_csi");
        registry.register("calls", "Calls of kubelet and others, by method and answer", self.calls.clone());
        registry.register("call_duration_seconds", "How long they took", self.durations.clone());
        registry.register("registered", "1 while kubelet has taken the driver", self.registered.clone());
        let help = "Sockets made anew after someone took them away";
        registry.register("renewed_sockets", help, self.renewed_sockets.clone());
        let help = "1 if the agent answered when it was asked for this";
        registry.register("agent_reachable", help, self.agent_reachable.clone());
        let help = "Mounts at targets that no agent knew, taken away";
        registry.register("removed_leftovers", help, self.removed_leftovers.clone());
    }

    /// Counts a call that was answered.
    pub(crate) fn answered(&self, method: &'static str, code: Code, took: Duration) {
        self.calls.get_or_create(&Call { method, code }).inc();
        self.durations.get_or_create(&Method(method)).observe(took.as_secs_f64());
    }
}

impl EncodeLabelSet for Call {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        [("method", self.method), ("code", &format!("{:?}", self.code))].encode(encoder)
    }
}

impl EncodeLabelSet for Method {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        [("method", self.0)].encode(encoder)
    }
}
