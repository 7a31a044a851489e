//! The plan: which fault meets which call.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use weightd_types::ByteRange;

/// What goes wrong. Counts of bytes are of one read, from its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The answer comes late.
    Latency(Duration),
    /// The origin asks for fewer requests (429).
    Throttle {
        /// What it says in `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// The origin fails (503).
    Unavailable {
        /// What it says in `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// The pinned version is gone.
    Changed,
    /// The token has expired.
    Unauthenticated,
    /// The connection breaks within the body.
    Reset {
        /// Bytes that come first.
        after: u64,
    },
    /// The body ends early, and nobody says so.
    Short {
        /// Bytes that come.
        after: u64,
    },
    /// One bit of the object is wrong.
    Flip {
        /// Which byte of the object. Only reads that hold it are met.
        at: u64,
    },
    /// The body stops coming.
    Stall {
        /// Bytes that come first.
        after: u64,
        /// For how long; `None` is for ever.
        lasting: Option<Duration>,
    },
}

impl Fault {
    /// Its word in [`Faults::count_of`].
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Latency(_) => "latency",
            Self::Throttle { .. } => "throttle",
            Self::Unavailable { .. } => "unavailable",
            Self::Changed => "changed",
            Self::Unauthenticated => "unauthenticated",
            Self::Reset { .. } => "reset",
            Self::Short { .. } => "short",
            Self::Flip { .. } => "flip",
            Self::Stall { .. } => "stall",
        }
    }

    /// Whether a read of that range would show it.
    fn fits(&self, range: ByteRange) -> bool {
        match self {
            Self::Flip { at } => range.contains(&ByteRange::at(*at, 1)),
            Self::Reset { after } | Self::Short { after } | Self::Stall { after, .. } => *after < range.len(),
            Self::Latency(_)
            | Self::Throttle { .. }
            | Self::Unavailable { .. }
            | Self::Changed
            | Self::Unauthenticated => true,
        }
    }
}

/// A fault, and the calls it meets: all, unless it is narrowed.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    fault: Fault,
    on_lists: bool,
    object: Option<String>,
    skip: u64,
    every: u64,
    chance: f64,
    times: u64,
}

impl Rule {
    /// Meets reads.
    pub fn reads(fault: Fault) -> Self {
        Self { fault, on_lists: false, object: None, skip: 0, every: 1, chance: 1.0, times: u64::MAX }
    }

    /// Meets listings.
    pub fn lists(fault: Fault) -> Self {
        Self { on_lists: true, ..Self::reads(fault) }
    }

    /// Only reads of the object with that name.
    #[must_use]
    pub fn of(self, object: impl Into<String>) -> Self {
        Self { object: Some(object.into()), ..self }
    }

    /// Not the first `n` calls it would meet.
    #[must_use]
    pub fn skip(self, n: u64) -> Self {
        Self { skip: n, ..self }
    }

    /// Every `k`-th call only, beginning with the `k`-th.
    #[must_use]
    pub fn every(self, k: u64) -> Self {
        Self { every: k.max(1), ..self }
    }

    /// Each call with this probability only.
    #[must_use]
    pub fn chance(self, probability: f64) -> Self {
        Self { chance: probability.clamp(0.0, 1.0), ..self }
    }

    /// At most `n` times in all: `times(1)` is once.
    #[must_use]
    pub fn times(self, n: u64) -> Self {
        Self { times: n, ..self }
    }
}

/// A plan of faults. Clones are the same plan, so a test keeps one to change it and to count. The same seed and
/// the same order of calls give the same faults.
#[derive(Debug, Clone)]
pub struct Faults(Arc<Mutex<Plan>>);

#[derive(Debug)]
struct Plan {
    random: StdRng,
    rules: Vec<Running>,
    counts: BTreeMap<&'static str, u64>,
}

#[derive(Debug)]
struct Running {
    rule: Rule,
    met: u64,
    injected: u64,
}

impl Faults {
    /// A plan without faults.
    pub fn new(seed: u64) -> Self {
        let plan = Plan { random: StdRng::seed_from_u64(seed), rules: Vec::new(), counts: BTreeMap::new() };
        Self(Arc::new(Mutex::new(plan)))
    }

    /// Adds a rule. A call meets all rules that fit it, in the order in which they were added.
    #[must_use]
    pub fn with(self, rule: Rule) -> Self {
        self.add(rule);
        self
    }

    /// Adds a rule while the plan is in use.
    pub fn add(&self, rule: Rule) {
        self.lock().rules.push(Running { rule, met: 0, injected: 0 });
    }

    /// Removes all rules: the origin is well again. Counts stay.
    pub fn clear(&self) {
        self.lock().rules.clear();
    }

    /// How many faults were injected.
    pub fn count(&self) -> u64 {
        self.lock().counts.values().sum()
    }

    /// How many faults of a [kind](Fault::kind) were injected.
    pub fn count_of(&self, kind: &str) -> u64 {
        self.lock().counts.get(kind).copied().unwrap_or(0)
    }

    pub(super) fn of_list(&self) -> Vec<Fault> {
        self.lock().draw(|rule| rule.on_lists)
    }

    pub(super) fn of_read(&self, name: &str, range: ByteRange) -> Vec<Fault> {
        self.lock().draw(|rule| {
            let named = rule.object.as_deref().is_none_or(|object| object == name);
            !rule.on_lists && named && rule.fault.fits(range)
        })
    }

    fn lock(&self) -> MutexGuard<'_, Plan> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Plan {
    fn draw(&mut self, fits: impl Fn(&Rule) -> bool) -> Vec<Fault> {
        let mut drawn = Vec::new();
        for running in &mut self.rules {
            let rule = &running.rule;
            if !fits(rule) || running.injected >= rule.times {
                continue;
            }
            running.met += 1;
            let due = running.met > rule.skip && (running.met - rule.skip).is_multiple_of(rule.every);
            if due && self.random.random_bool(rule.chance) {
                running.injected += 1;
                *self.counts.entry(rule.fault.kind()).or_default() += 1;
                drawn.push(rule.fault);
            }
        }
        drawn
    }
}
