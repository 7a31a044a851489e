//! Writes that fail are made again ever more seldom, and not by all nodes at the same moment: an API server that is in
//! trouble has as many drivers as nodes.

use std::{collections::BTreeMap, time::Duration};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::time::Instant;

/// Shortest wait after a failure; doubles with each.
const PAUSE: Duration = Duration::from_secs(2);
/// Longest wait. To each as much again is added by chance.
const PAUSE_LIMIT: Duration = Duration::from_secs(60);

/// Kinds of writes that failed last time.
#[derive(Debug, Default)]
pub(crate) struct Pauses {
    by_kind: BTreeMap<&'static str, Pause>,
}

#[derive(Debug)]
struct Pause {
    waits: ExponentialBackoff,
    until: Instant,
}

impl Pauses {
    /// Whether to write now.
    pub(crate) fn is_due(&self, kind: &str) -> bool {
        self.by_kind.get(kind).is_none_or(|pause| Instant::now() >= pause.until)
    }

    pub(crate) fn failed(&mut self, kind: &'static str) {
        let begin = || Pause { waits: waits(), until: Instant::now() };
        let pause = self.by_kind.entry(kind).or_insert_with(begin);
        pause.until = Instant::now() + pause.waits.next().unwrap_or(PAUSE_LIMIT);
    }

    pub(crate) fn succeeded(&mut self, kind: &str) {
        self.by_kind.remove(kind);
    }
}

fn waits() -> ExponentialBackoff {
    let builder = ExponentialBuilder::new().with_min_delay(PAUSE).with_max_delay(PAUSE_LIMIT);
    builder.without_max_times().with_jitter().build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_kind_waits_ever_longer_for_itself_until_it_succeeds() {
        let mut pauses = Pauses::default();
        let waited = async |pauses: &Pauses| {
            let started = Instant::now();
            while !pauses.is_due("one") {
                tokio::time::advance(Duration::from_millis(100)).await;
            }
            started.elapsed()
        };
        for shortest in [2, 4, 8, 16, 32, 60, 60] {
            pauses.failed("one");
            assert!(pauses.is_due("other"));
            let waited = waited(&pauses).await.as_secs();
            assert!((shortest..=2 * shortest).contains(&waited), "{shortest}: {waited}");
        }
        pauses.failed("one");
        pauses.succeeded("one");
        assert!(pauses.is_due("one"));
        pauses.failed("one");
        assert!(waited(&pauses).await < Duration::from_secs(5), "it begins anew");
    }
}
