//! Ctrl-C and SIGTERM.

use tokio::signal::unix::{Signal, SignalKind, signal};

use weightd_daemon::{Exit, end_at_the_second};

/// The signals that end a command. They are listened to from the moment this exists, not from the first wait: a
/// signal in between would end the process without a word. A second one ends the process whatever it is at.
pub(crate) struct Signals {
    interrupt: Option<Signal>,
    terminate: Option<Signal>,
}

impl Signals {
    /// Listens. Where that is refused, signals end the process as they always did.
    pub(crate) fn listen() -> Self {
        // Where that is refused too, only the runtime ends the process.
        let _ = end_at_the_second();
        Self {
            interrupt: signal(SignalKind::interrupt()).ok(),
            terminate: signal(SignalKind::terminate()).ok(),
        }
    }

    /// Waits for the next, and gives how to end then.
    pub(crate) async fn next(&mut self) -> Exit {
        tokio::select! {
            () = received(&mut self.interrupt) => Exit::Interrupted,
            () = received(&mut self.terminate) => Exit::Terminated,
        }
    }
}

async fn received(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}
