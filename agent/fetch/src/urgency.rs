//! Who goes first when there is not enough for all. It may change while a request is under way.

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout_at},
};

/// Whether someone waits for what a request brings right now. Clones are of the same request.
#[derive(Debug, Clone)]
pub(crate) struct Urgency(watch::Sender<bool>);

impl Urgency {
    /// Someone waits for these bytes.
    pub(crate) fn awaited() -> Self {
        Self(watch::Sender::new(true))
    }

    /// Someone will want them: others go first.
    pub(crate) fn bulk() -> Self {
        Self(watch::Sender::new(false))
    }

    pub(crate) fn is_awaited(&self) -> bool {
        *self.0.borrow()
    }

    /// Says that someone waits from now on, or nobody any more.
    pub(crate) fn set_awaited(&self, is_awaited: bool) {
        self.0.send_if_modified(|before| std::mem::replace(before, is_awaited) != is_awaited);
    }

    /// Waits until someone does.
    pub(crate) async fn until_awaited(&self) {
        // It fails only without a sender, and this is one.
        let _ = self.0.subscribe().wait_for(|is_awaited| *is_awaited).await;
    }

    /// Waits for a while, of which no more than `asked` is left once someone begins to wait.
    pub(crate) async fn pause(&self, wait: Duration, asked: Duration) {
        let begin = Instant::now();
        let end = begin + wait;
        let is_hurried = !self.is_awaited() && timeout_at(end, self.until_awaited()).await.is_ok();
        sleep_until(if is_hurried { begin + asked } else { end }).await;
    }
}

impl PartialEq for Urgency {
    fn eq(&self, other: &Self) -> bool {
        self.0.same_channel(&other.0)
    }
}

impl Eq for Urgency {}
