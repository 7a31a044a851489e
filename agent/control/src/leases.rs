//! Credentials end with their volumes, also with those that someone else unmounted.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::Control;

/// How often volumes are looked for that others unmounted.
const LOOK: Duration = Duration::from_secs(5);

impl Control {
    /// Ends credentials of volumes that are gone, until the agent stops.
    pub async fn end_leases(self) {
        loop {
            tokio::select! {
                () = self.stopping.cancelled() => return,
                () = sleep(LOOK) => {}
            }
            // Volumes that come while the mount table is read are not missed in it.
            let by_then = Instant::now();
            match self.volumes.list().await {
                Ok(volumes) => self.access.keep_only(
                    by_then,
                    |target| volumes.iter().any(|volume| volume.target == target),
                    |snapshot| self.volumes.is_shown(snapshot),
                ),
                Err(error) => tracing::warn!(%error, "could not look which volumes are gone"),
            }
        }
    }
}
