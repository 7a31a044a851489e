//! What is counted of the cluster. Names begin with `weightd_cluster_`.

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use weightd_proto::v1::WantedState;

use crate::wanted::Wanted;

/// What is counted of the cluster.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    wanted_models: Gauge,
    required_models: Gauge,
    complete_models: Gauge,
    failing_models: Gauge,
    wanted_bytes: Gauge,
    present_bytes: Gauge,
    pub(crate) weights_ready: Gauge,
    pub(crate) taints_removed: Counter,
    pub(crate) api_errors: Counter,
}

impl Metrics {
    /// Adds them to a registry under the prefix `weightd_cluster`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("weightd_cluster");
        let gauges = [
            ("wanted_models", "Models that this node is to have", &self.wanted_models),
            ("required_models", "Those of them that it is not ready without", &self.required_models),
            ("complete_models", "Models that are wanted and here", &self.complete_models),
            ("failing_models", "Models that are wanted and whose last attempt failed", &self.failing_models),
            (
                "wanted_bytes",
                "Bytes of the models that are wanted, as far as they are known",
                &self.wanted_bytes,
            ),
            ("present_bytes", "Bytes of them that are here", &self.present_bytes),
            ("weights_ready", "1 when the node's condition WeightsReady is True", &self.weights_ready),
        ];
        for (name, help, gauge) in gauges {
            registry.register(name, help, gauge.clone());
        }
        registry.register(
            "taints_removed",
            "Startup taints taken off this node",
            self.taints_removed.clone(),
        );
        registry.register("api_errors", "Calls to the Kubernetes API that failed", self.api_errors.clone());
    }

    pub(crate) fn show(&self, wanted: &[Wanted], states: &[WantedState]) {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let sum = |bytes: fn(&WantedState) -> u64| {
            i64::try_from(states.iter().map(bytes).sum::<u64>()).unwrap_or(i64::MAX)
        };
        self.wanted_models.set(count(wanted.len()));
        self.required_models.set(count(wanted.iter().filter(|one| one.required).count()));
        self.complete_models.set(count(states.iter().filter(|state| state.complete).count()));
        self.failing_models.set(count(states.iter().filter(|state| state.failure.is_some()).count()));
        self.wanted_bytes.set(sum(|state| state.total_bytes));
        self.present_bytes.set(sum(|state| state.present_bytes));
    }
}
