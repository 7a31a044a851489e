//! What a request was sent for, and who waits for it by now.

use crate::urgency::Urgency;

/// What a request was sent for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Errand {
    /// Someone waits for it.
    Demand,
    /// It follows what someone waited for.
    Ahead,
    /// Someone will want it.
    Bulk,
}

/// A request that has not ended.
#[derive(Debug)]
pub(super) struct UnderWay {
    errand: Errand,
    /// Its first piece.
    first: usize,
    urgency: Urgency,
    /// Someone waits for its pieces before this one.
    awaited_until: usize,
}

impl UnderWay {
    pub(super) fn new(errand: Errand, first: usize) -> Self {
        let (urgency, awaited_until) = match errand {
            Errand::Demand => (Urgency::awaited(), usize::MAX),
            Errand::Ahead | Errand::Bulk => (Urgency::bulk(), 0),
        };
        Self { errand, first, urgency, awaited_until }
    }

    pub(super) fn urgency(&self) -> &Urgency {
        &self.urgency
    }

    /// Its first piece, if nobody waited for it when it was sent.
    pub(super) fn bulk(&self) -> Option<usize> {
        (self.errand == Errand::Bulk).then_some(self.first)
    }

    /// Someone waits for a piece of it, and so for all before that.
    pub(super) fn hurry(&mut self, piece: usize) {
        self.awaited_until = self.awaited_until.max(piece + 1);
        self.urgency.set_awaited(true);
    }

    /// It comes to a piece. Past the last that someone waits for, it lets others go first again.
    pub(super) fn comes_to(&mut self, piece: usize) {
        self.urgency.set_awaited(piece < self.awaited_until);
    }
}
