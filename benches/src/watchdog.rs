//! Programs that hang: they are ended, so that a benchmark that nobody looks after goes on, or says why it does not.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Many times what anything takes that is measured.
const LIMIT: Duration = Duration::from_secs(900);

/// Ends a process that does not end. Gives up when dropped.
#[derive(Debug)]
pub(crate) struct Watchdog {
    limit: Duration,
    has_bitten: Arc<AtomicBool>,
    until: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Watches a child that nobody has waited for yet.
    ///
    /// # Errors
    /// When there is no such process.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        Self::with_limit(pid, LIMIT)
    }

    fn with_limit(pid: u32, limit: Duration) -> Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("a process has a number")?;
        // Of the process itself: its number may be another's by then.
        let process = pidfd_open(pid, PidfdFlags::empty()).context("watching a process")?;
        let has_bitten = Arc::new(AtomicBool::new(false));
        let (until, over) = channel();
        let bites = Arc::clone(&has_bitten);
        let thread = thread::spawn(move || {
            if over.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                // First: whoever sees it end asks why.
                bites.store(true, Ordering::Release);
                // It fails only when it has just ended, which took that long, too.
                let _ = pidfd_send_signal(&process, Signal::KILL);
            }
        });
        Ok(Self { limit, has_bitten, until: Some(until), thread: Some(thread) })
    }

    /// What it did, if it has ended the process.
    pub(crate) fn words(&self) -> Option<String> {
        let words = || format!("it did not end within {} s, and was ended", self.limit.as_secs());
        self.has_bitten.load(Ordering::Acquire).then(words)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.until.take());
        // It cannot panic.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_hangs_is_ended_and_what_ends_is_not() {
        let mut hangs = Command::new("sleep").arg("60").spawn().unwrap();
        let watchdog = Watchdog::with_limit(hangs.id(), Duration::from_millis(10)).unwrap();
        assert!(!hangs.wait().unwrap().success());
        assert!(watchdog.words().unwrap().contains("was ended"));
        let mut ends = Command::new("true").spawn().unwrap();
        let watchdog = Watchdog::of(ends.id()).unwrap();
        assert!(ends.wait().unwrap().success());
        assert_eq!(watchdog.words(), None);
    }
}
