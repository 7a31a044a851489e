//! How fast it may go.

use std::{num::NonZeroU64, time::Duration};

use tokio::time::Instant;

/// Gives every byte its slice of time, which has to pass before the byte is read. Time in which nothing was read is not
/// made up for.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_second: NonZeroU64,
    booked_until: Instant,
}

impl Pace {
    pub(super) fn new(bytes_per_second: NonZeroU64) -> Self {
        Self { bytes_per_second, booked_until: Instant::now() }
    }

    /// Books the time of so many bytes, from now or from the end of what is booked.
    pub(super) fn book(&mut self, bytes: u64) {
        #[expect(clippy::cast_precision_loss, reason = "nanoseconds of a slice need no more")]
        let slice = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second.get() as f64);
        self.booked_until = self.booked_until.max(Instant::now()) + slice;
    }

    /// How long it is until what is booked may be read.
    pub(super) fn early(&self) -> Duration {
        self.booked_until.saturating_duration_since(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_rate_holds_from_the_first_byte_and_a_pause_is_not_made_up_for() {
        let start = Instant::now();
        let mut pace = Pace::new(NonZeroU64::new(1000).unwrap());
        for _ in 0..50 {
            pace.book(100);
            sleep(pace.early()).await;
        }
        let elapsed = start.elapsed();
        assert!(elapsed >= Duration::from_secs(5) && elapsed < Duration::from_millis(5100), "{elapsed:?}");
        advance(Duration::from_secs(100)).await;
        pace.book(100);
        assert!(pace.early() > Duration::from_millis(99), "{:?}", pace.early());
    }
}
