//! An answer that takes its time.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use fuser::{Errno, ReplyData};

/// A read that is being answered. Dropped unanswered it fails, as a read must that nobody answers any more; but not
/// when the agent is leaving and a keeper stays: then the kernel asks the next agent.
pub(crate) struct PendingRead {
    reply: Option<ReplyData>,
    leaves_it: Arc<AtomicBool>,
}

impl PendingRead {
    pub(crate) fn new(reply: ReplyData, leaves_it: Arc<AtomicBool>) -> Self {
        Self { reply: Some(reply), leaves_it }
    }

    pub(crate) fn data(mut self, bytes: &[u8]) {
        if let Some(reply) = self.reply.take() {
            reply.data(bytes);
        }
    }

    pub(crate) fn error(mut self, errno: Errno) {
        if let Some(reply) = self.reply.take_if(|_| !self.leaves_it.load(Ordering::Acquire)) {
            reply.error(errno);
        }
    }
}

impl Drop for PendingRead {
    fn drop(&mut self) {
        if self.leaves_it.load(Ordering::Acquire)
            && let Some(reply) = self.reply.take()
        {
            // Dropping it would answer with an error.
            std::mem::forget(reply);
        }
    }
}
