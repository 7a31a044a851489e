//! An upper bound on bytes a second.

use std::{sync::Mutex, sync::PoisonError, time::Duration};

use tokio::time::{Instant, sleep_until};

/// How far ahead of the clock a burst may run.
const BURST: Duration = Duration::from_millis(100);

/// Lets so many bytes a second pass, or all of them. Every byte books a slice of time; whoever books time that has not
/// come waits for it, so the bound holds over any second and order is fair.
#[derive(Debug)]
pub(crate) struct Throttle {
    bytes_per_second: Option<u64>,
    booked_until: Mutex<Instant>,
}

impl Throttle {
    pub(crate) fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second, booked_until: Mutex::new(Instant::now()) }
    }

    /// Waits until `len` more bytes may pass.
    pub(crate) async fn pass(&self, len: usize) {
        let Some(rate) = self.bytes_per_second else { return };
        #[expect(clippy::cast_precision_loss, reason = "nanoseconds of a slice need no more")]
        let slice = Duration::from_secs_f64(len as f64 / rate.max(1) as f64);
        let until = {
            let mut booked = self.booked_until.lock().unwrap_or_else(PoisonError::into_inner);
            *booked = (*booked).max(Instant::now()) + slice;
            *booked
        };
        if let Some(wait) = until.checked_sub(BURST)
            && wait > Instant::now()
        {
            sleep_until(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_bound_holds_over_time() {
        let throttle = Throttle::new(Some(1000));
        let start = Instant::now();
        for _ in 0..50 {
            throttle.pass(100).await;
        }
        let elapsed = start.elapsed();
        assert!(
            elapsed >= Duration::from_millis(4850) && elapsed < Duration::from_millis(5100),
            "{elapsed:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn no_bound_costs_nothing() {
        let throttle = Throttle::new(None);
        let start = Instant::now();
        throttle.pass(usize::MAX).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
