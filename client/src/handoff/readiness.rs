//! Which tensors have arrived.

use weightd_proto::v1::{HandoffReady, handoff_answer::Answer};

use super::line::{Notes, out_of_order};

/// How much of a tensor is known to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Missing,
    /// All bytes, which nobody has confirmed yet.
    Provisional,
    /// All bytes, and they are the origin's.
    Verified,
}

/// What is known of each tensor.
#[derive(Debug)]
pub(super) struct Readiness {
    levels: Vec<Level>,
    /// How many are not verified.
    unverified: usize,
}

impl Readiness {
    /// Of that many tensors, all of them there or none.
    pub(super) fn new(tensors: usize, complete: bool) -> Self {
        let level = if complete { Level::Verified } else { Level::Missing };
        Self { levels: vec![level; tensors], unverified: if complete { 0 } else { tensors } }
    }

    /// Whether a tensor is there.
    pub(super) fn has(&self, position: usize, verified: bool) -> bool {
        self.levels[position] >= if verified { Level::Verified } else { Level::Provisional }
    }

    /// Whether any is there.
    pub(super) fn has_any(&self) -> bool {
        self.levels.iter().any(|level| *level > Level::Missing)
    }

    /// Whether all are there, and verified.
    pub(super) fn is_complete(&self) -> bool {
        self.unverified == 0
    }
}

impl Notes for Readiness {
    fn learn(&mut self, answer: Answer) -> Result<(), String> {
        match answer {
            Answer::Ready(ready) => self.learn_ready(&ready).map_err(str::to_owned),
            Answer::Opened(_)
            | Answer::Arenas(_)
            | Answer::Failed(_)
            | Answer::Delivered(_)
            | Answer::Full(_) => Err(out_of_order()),
        }
    }

    fn forget_provisional(&mut self) {
        for known in self.levels.iter_mut().filter(|known| **known == Level::Provisional) {
            *known = Level::Missing;
        }
    }
}

impl Readiness {
    fn learn_ready(&mut self, ready: &HandoffReady) -> Result<(), &'static str> {
        let level = if ready.verified { Level::Verified } else { Level::Provisional };
        for range in &ready.tensors {
            let range = range.start as usize..range.end as usize;
            let levels = self.levels.get_mut(range).ok_or("named tensors that are not there")?;
            for known in levels.iter_mut().filter(|known| **known < level) {
                *known = level;
                self.unverified -= usize::from(level == Level::Verified);
            }
        }
        Ok(())
    }
}
