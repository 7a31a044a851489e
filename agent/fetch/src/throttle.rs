//! An upper bound on bytes a second.

use std::{sync::Mutex, sync::PoisonError, time::Duration};

use tokio::time::{Instant, sleep_until};

/// How far ahead of the clock a burst may run.
const BURST: Duration = Duration::from_millis(100);

/// Who goes first when there is not enough for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// Someone waits for these bytes.
    Awaited,
    /// Someone will want them.
    Bulk,
}

/// Lets so many bytes a second pass, or all of them. Every byte books a slice of time; whoever books time that has not
/// come waits for it, so the bound holds over time and order is fair. Bytes that someone waits for only wait for each
/// other; the others make room for them.
#[derive(Debug)]
pub(crate) struct Throttle {
    bytes_per_second: Option<u64>,
    booked: Mutex<Booked>,
}

/// Until when time is booked.
#[derive(Debug)]
struct Booked {
    awaited: Instant,
    all: Instant,
}

impl Throttle {
    pub(crate) fn new(bytes_per_second: Option<u64>) -> Self {
        let now = Instant::now();
        Self { bytes_per_second, booked: Mutex::new(Booked { awaited: now, all: now }) }
    }

    /// Waits until `len` more bytes may pass.
    pub(crate) async fn pass(&self, len: usize, urgency: Urgency) {
        let Some(rate) = self.bytes_per_second else { return };
        #[expect(clippy::cast_precision_loss, reason = "nanoseconds of a slice need no more")]
        let slice = Duration::from_secs_f64(len as f64 / rate.max(1) as f64);
        let until = self.booked.lock().unwrap_or_else(PoisonError::into_inner).book(slice, urgency);
        if let Some(wait) = until.checked_sub(BURST)
            && wait > Instant::now()
        {
            sleep_until(wait).await;
        }
    }
}

impl Booked {
    fn book(&mut self, slice: Duration, urgency: Urgency) -> Instant {
        let now = Instant::now();
        self.all = self.all.max(now) + slice;
        if urgency == Urgency::Bulk {
            return self.all;
        }
        self.awaited = self.awaited.max(now) + slice;
        self.awaited
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_bound_holds_over_time() {
        let throttle = Throttle::new(Some(1000));
        let start = Instant::now();
        for _ in 0..50 {
            throttle.pass(100, Urgency::Bulk).await;
        }
        let elapsed = start.elapsed();
        assert!(
            elapsed >= Duration::from_millis(4850) && elapsed < Duration::from_millis(5100),
            "{elapsed:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_someone_waits_for_goes_first_and_the_others_make_room() {
        let throttle = Throttle::new(Some(1000));
        let start = Instant::now();
        // Ten seconds' worth is booked, and not all of it has passed.
        for _ in 0..100 {
            let _ = timeout(Duration::ZERO, throttle.pass(100, Urgency::Bulk)).await;
        }
        throttle.pass(50, Urgency::Awaited).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        throttle.pass(1050, Urgency::Awaited).await;
        assert_eq!(start.elapsed().as_secs(), 1, "the bound is theirs too");
        throttle.pass(100, Urgency::Bulk).await;
        assert_eq!(start.elapsed().as_secs(), 11, "what they took, the others wait for");
    }

    #[tokio::test(start_paused = true)]
    async fn no_bound_costs_nothing() {
        let throttle = Throttle::new(None);
        let start = Instant::now();
        throttle.pass(usize::MAX, Urgency::Bulk).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
