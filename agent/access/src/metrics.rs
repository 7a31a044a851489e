//! What this room counts. Names begin with `weightd_access_`.

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

use crate::{AccessError, Admission};

/// What this room counts. Clones share the counts.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    granted: Counter,
    earlier: Counter,
    refused: Counter,
    failed: Counter,
    pub(crate) exchanged: Counter,
    pub(crate) exchanges_refused: Counter,
    pub(crate) exchanges_failed: Counter,
    pub(crate) live: Gauge,
}

impl Metrics {
    /// Adds them to a registry under the prefix `weightd_access`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("weightd_access");
        let counters = [
            ("granted_admissions", "Pods' volumes that the origin allowed", &self.granted),
            (
                "earlier_admissions",
                "Pods' volumes that were allowed by an earlier answer, because the origin could not be asked",
                &self.earlier,
            ),
            ("refused_admissions", "Pods' volumes that were refused", &self.refused),
            (
                "failed_admissions",
                "Pods' volumes whose source could not be asked for, or is none",
                &self.failed,
            ),
            ("exchanged_tokens", "Tokens of pods exchanged for access tokens", &self.exchanged),
            (
                "refused_exchanges",
                "Tokens of pods that the token service did not take",
                &self.exchanges_refused,
            ),
            ("failed_exchanges", "Exchanges that got no answer that means anything", &self.exchanges_failed),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        let help = "Credentials, of pods and the node, as which origins may be asked right now";
        registry.register("live_credentials", help, self.live.clone());
    }

    /// Counts what a pod was answered.
    pub(crate) fn answered(&self, admitted: &Result<Admission, AccessError>, is_refusal: bool) {
        let counter = match admitted {
            Ok(Admission::Now { .. }) => &self.granted,
            Ok(Admission::Earlier { .. }) => &self.earlier,
            Err(_) if is_refusal => &self.refused,
            Err(_) => &self.failed,
        };
        counter.inc();
    }
}
