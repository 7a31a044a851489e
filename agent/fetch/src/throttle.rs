//! An upper bound on bytes a second.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until, timeout_at};

use crate::urgency::Urgency;

/// How far ahead of the clock a burst may run.
const BURST: Duration = Duration::from_millis(100);

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
    pub(crate) async fn pass(&self, len: usize, urgency: &Urgency) {
        let Some(rate) = self.bytes_per_second else { return };
        #[expect(clippy::cast_precision_loss, reason = "nanoseconds of a slice need no more")]
        let slice = Duration::from_secs_f64(len as f64 / rate.max(1) as f64);
        let among_all = self.booked().among_all(slice);
        // Someone may begin to wait for these bytes meanwhile: they go on as if that had been so from the beginning.
        if urgency.is_awaited() || timeout_at(among_all, urgency.until_awaited()).await.is_ok() {
            let sooner = self.booked().among_awaited(slice, among_all);
            sleep_until(sooner).await;
        }
    }

    fn booked(&self) -> MutexGuard<'_, Booked> {
        self.booked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Booked {
    /// Books a slice after all others; says when it may pass.
    fn among_all(&mut self, slice: Duration) -> Instant {
        let now = Instant::now();
        self.all = self.all.max(now) + slice;
        less_burst(self.all)
    }

    /// Books a slice after those that someone waits for, unless its turn among all comes sooner; says when it may pass.
    fn among_awaited(&mut self, slice: Duration, among_all: Instant) -> Instant {
        let awaited = self.awaited.max(Instant::now()) + slice;
        if less_burst(awaited) > among_all {
            return among_all;
        }
        self.awaited = awaited;
        less_burst(awaited)
    }
}

fn less_burst(until: Instant) -> Instant {
    until.checked_sub(BURST).unwrap_or(until)
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
            throttle.pass(100, &Urgency::bulk()).await;
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
            let _ = timeout(Duration::ZERO, throttle.pass(100, &Urgency::bulk())).await;
        }
        throttle.pass(50, &Urgency::awaited()).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        throttle.pass(1050, &Urgency::awaited()).await;
        assert_eq!(start.elapsed().as_secs(), 1, "the bound is theirs too");
        throttle.pass(100, &Urgency::bulk()).await;
        assert_eq!(start.elapsed().as_secs(), 11, "what they took, the others wait for");
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_that_someone_begins_to_wait_for_go_first_from_then_on() {
        let throttle = Throttle::new(Some(1000));
        let _ = timeout(Duration::ZERO, throttle.pass(60_000, &Urgency::bulk())).await;
        let (start, urgency) = (Instant::now(), Urgency::bulk());
        let hurry = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            urgency.set_awaited(true);
        };
        tokio::join!(throttle.pass(1100, &urgency), hurry);
        assert_eq!(start.elapsed().as_secs(), 6, "its own second, and not the minute before it");
        throttle.pass(1100, &Urgency::awaited()).await;
        assert_eq!(start.elapsed().as_secs(), 7, "the bound is theirs together");
        throttle.pass(100, &Urgency::bulk()).await;
        assert_eq!(start.elapsed().as_secs(), 62, "and nothing was booked twice among all");
    }

    #[tokio::test(start_paused = true)]
    async fn no_bound_costs_nothing() {
        let throttle = Throttle::new(None);
        let start = Instant::now();
        throttle.pass(usize::MAX, &Urgency::bulk()).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
