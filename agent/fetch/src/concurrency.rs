//! How many requests to have in flight: found by trying, because it depends on the bucket, the network and the disk.
//!
//! Every interval the controller compares the rate with the best it knows. It goes up while that helps, tries one step
//! down now and then (fewer connections for the same rate cost less), and halves when the origin asks it to slow down.

/// A rate this much higher is worth another step up.
const GAIN: f64 = 1.05;
/// A rate at least this good with fewer requests is as good.
const EQUAL: f64 = 0.98;
/// Intervals to stay before trying another number.
const REST: u32 = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trial {
    None,
    Up { from: usize },
    Down { from: usize },
}

/// The number of requests to have in flight.
#[derive(Debug, Clone)]
pub struct Concurrency {
    limit: usize,
    min: usize,
    max: usize,
    trial: Trial,
    /// Rate with the accepted number.
    reference: f64,
    rest: u32,
    /// Alternates the direction of trials.
    last_up: bool,
}

impl Concurrency {
    /// Begins with eight requests, or as near as the bounds let it.
    pub fn new(min: usize, max: usize) -> Self {
        let max = max.max(min);
        Self {
            limit: 8.clamp(min, max),
            min,
            max,
            trial: Trial::None,
            reference: 0.0,
            rest: 1,
            last_up: false,
        }
    }

    /// Requests to have in flight now.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Takes in one interval: bytes a second, whether the limit was reached (else the rate says nothing about it), and
    /// whether the origin asked to slow down.
    pub fn observe(&mut self, rate: f64, was_reached: bool, was_throttled: bool) {
        if was_throttled {
            self.limit = (self.limit / 2).max(self.min);
            (self.trial, self.reference, self.rest, self.last_up) = (Trial::None, 0.0, 2 * REST, false);
            return;
        }
        if !was_reached {
            return;
        }
        match self.trial {
            Trial::None if self.rest > 0 => {
                self.rest -= 1;
                // Half of the past, so that one slow interval does not make the next one look like progress.
                self.reference = if self.reference == 0.0 { rate } else { (self.reference + rate) / 2.0 };
            }
            Trial::None => self.begin_trial(),
            Trial::Up { from } if rate < self.reference * GAIN => self.settle(from),
            Trial::Up { .. } => {
                self.reference = rate;
                self.begin_trial();
            }
            Trial::Down { from } if rate < self.reference * EQUAL => self.settle(from),
            Trial::Down { .. } => self.settle(self.limit),
        }
    }

    fn begin_trial(&mut self) {
        let (from, step) = (self.limit, (self.limit / 4).max(1));
        let up = !self.last_up || matches!(self.trial, Trial::Up { .. });
        self.last_up = up;
        self.limit = if up { (from + step).min(self.max) } else { from.saturating_sub(step).max(self.min) };
        self.trial = match up {
            _ if self.limit == from => Trial::None,
            true => Trial::Up { from },
            false => Trial::Down { from },
        };
        if self.trial == Trial::None {
            self.rest = REST;
        }
    }

    fn settle(&mut self, limit: usize) {
        self.limit = limit;
        self.trial = Trial::None;
        self.rest = REST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the controller against an origin, and returns where it ends up.
    fn settle(rate: impl Fn(usize) -> f64) -> usize {
        let mut concurrency = Concurrency::new(1, 64);
        for _ in 0..400 {
            let limit = concurrency.limit();
            concurrency.observe(rate(limit), true, false);
        }
        concurrency.limit()
    }

    #[test]
    fn it_climbs_while_each_connection_adds_its_share_and_stops_at_the_nodes_limit() {
        // 150 MB/s a connection, 3 GB/s in all: 20 connections.
        let limit = settle(|connections| (connections as f64 * 150.0).min(3000.0));
        assert!((18..=26).contains(&limit), "{limit}");
    }

    #[test]
    fn it_falls_where_more_connections_do_not_help() {
        let limit = settle(|connections| (connections as f64 * 1000.0).min(2000.0));
        assert!(limit <= 5, "{limit}");
    }

    #[test]
    fn it_halves_when_throttled_and_says_nothing_while_idle() {
        let mut concurrency = Concurrency::new(1, 64);
        concurrency.observe(10.0, true, true);
        assert_eq!(concurrency.limit(), 4);
        for _ in 0..100 {
            concurrency.observe(0.0, false, false);
        }
        assert_eq!(concurrency.limit(), 4);
    }
}
