//! Publishing: a volume comes.
//!
//! A call that asks the agent to mount something is never cut off, however soon kubelet loses patience: it has the turn of
//! its target until it is over, so that nothing is mounted behind the back of whoever comes next. A volume that is to be
//! ready is mounted first and waited for then: that way its transfer goes on between two attempts of kubelet's, and waiting
//! can be ended at any time. When it is complete, and before any pod has seen it, a bind takes the place of the mount that
//! loaded, so that no agent stands between the pod and its bytes.

use std::path::Path;

use tokio::time::{Instant, sleep_until, timeout_at};
use weightd_proto::{
    csi,
    v1::{self, FailureKind, VolumeServing},
};

use super::{Node, blocking, wish::Wish};
use crate::{attributes::Wait, error::CallError, mounts, turns::Turn};

/// More than anyone stacks at one target.
const MOUNTS: usize = 16;

impl Node {
    pub(super) async fn publish(
        &self,
        request: csi::NodePublishVolumeRequest,
    ) -> Result<csi::NodePublishVolumeResponse, CallError> {
        let wish = Wish::read(&request, &self.kubelet_directory)?;
        let until = Instant::now() + self.ready_within;
        let busy = CallError::Busy { target: wish.target.clone() };
        let source = wish.request.source.clone();
        let Ok(turn) = timeout_at(until, self.turns.come(&wish.target)).await else { return Err(busy) };
        let node = self.clone();
        let work = self.calls.running.spawn(async move { node.bring(&wish, &turn, until).await });
        match timeout_at(until + super::ANSWER, work).await {
            Ok(Ok(outcome)) => outcome.map(|()| csi::NodePublishVolumeResponse {}),
            Ok(Err(error)) => Err(CallError::Defect(error.to_string())),
            Err(_) => Err(CallError::Slow { what: format!("show {source}"), limit: self.ready_within }),
        }
    }

    async fn bring(&self, wish: &Wish, turn: &Turn, until: Instant) -> Result<(), CallError> {
        let volume = self.show(wish).await?;
        // A bind was complete when it was made, and a pod may have it since.
        if wish.wait == Wait::Started || volume.serving() == VolumeServing::Bind {
            return Ok(());
        }
        self.until_complete(wish, turn, until).await?;
        self.bind_instead(wish, &volume).await
    }

    /// Has the agent show it, and takes away what is in the way and nobody's.
    async fn show(&self, wish: &Wish) -> Result<v1::VolumeInfo, CallError> {
        let was_mounted = self.is_mounted(&wish.target).await?;
        let outcome = self.agent.publish(wish.request.clone()).await;
        let is_in_the_way = was_mounted
            && match &outcome {
                // The agent goes by the mount table, which does not know who still serves.
                Ok(_) => self.is_dead(&wish.target).await,
                Err(CallError::Agent { kind: FailureKind::Usage, .. }) => {
                    !self.is_volume(&wish.target).await?
                }
                Err(_) => false,
            };
        if is_in_the_way {
            tracing::warn!(target = %wish.target.display(), "removing what an earlier agent left, and mounting anew");
            self.clear(&wish.target).await?;
            return self.agent.publish(wish.request.clone()).await;
        }
        if outcome.is_ok() && !was_mounted {
            tracing::info!(source = wish.request.source, target = %wish.target.display(), "published");
        }
        outcome
    }

    /// Waits for the rest of a volume's bytes.
    async fn until_complete(&self, wish: &Wish, turn: &Turn, until: Instant) -> Result<(), CallError> {
        let outcome = tokio::select! {
            outcome = self.agent.wait(wish.request.clone()) => outcome,
            () = turn.is_unwanted() => Err(CallError::Busy { target: wish.target.clone() }),
            () = self.calls.stopping.cancelled() => Err(CallError::Stopping),
            () = sleep_until(until) => Err(self.how_far(wish).await),
        };
        if let Err(error) = &outcome
            && error.is_final()
        {
            // kubelet will take it that there is no volume.
            self.clear(&wish.target).await?;
        }
        outcome
    }

    async fn how_far(&self, wish: &Wish) -> CallError {
        let source_uri = wish.request.source.clone();
        match self.agent.stats(&wish.target).await {
            Ok(v1::StatsResponse { volume: Some(volume), .. }) => {
                CallError::Loading { source_uri, present: volume.present_bytes, size: volume.size_bytes }
            }
            Ok(_) => CallError::Busy { target: wish.target.clone() },
            Err(error) => error,
        }
    }

    /// No pod has the volume yet: it was not ready until now.
    async fn bind_instead(&self, wish: &Wish, volume: &v1::VolumeInfo) -> Result<(), CallError> {
        // What was waited for, whatever the source has become meanwhile.
        let snapshot = volume.snapshot.split('.').next().unwrap_or_default().to_owned();
        let request = v1::PublishRequest { expected_snapshot: snapshot, ..wish.request.clone() };
        self.agent.unpublish(&wish.target).await?;
        let bound = self.agent.publish(request).await?;
        // It may have lost something in between; kubelet comes again.
        if bound.serving() == VolumeServing::Bind { Ok(()) } else { Err(self.how_far(wish).await) }
    }

    /// Whether the agent knows a volume there.
    async fn is_volume(&self, target: &Path) -> Result<bool, CallError> {
        let path = target.to_owned();
        let resolved = blocking(move || mounts::resolved(&path)).await?;
        let is_it = |volume: &v1::VolumeInfo| Path::new(&volume.target_path) == resolved;
        Ok(self.agent.volumes().await?.iter().any(is_it))
    }

    pub(super) async fn is_mounted(&self, target: &Path) -> Result<bool, CallError> {
        let path = target.to_owned();
        blocking(move || mounts::is_mounted(&path)).await?.map_err(|cause| CallError::Io {
            action: "look whether something is mounted at",
            path: target.to_owned(),
            cause,
            hint: "the driver needs /proc",
        })
    }

    /// What is not dead may take its time to say so; then it is taken for alive.
    async fn is_dead(&self, target: &Path) -> bool {
        let path = target.to_owned();
        let asked = tokio::time::timeout(super::ANSWER, blocking(move || mounts::is_dead(&path)));
        matches!(asked.await, Ok(Ok(true)))
    }

    /// Takes away whatever is mounted there: volumes by the agent, the rest by force. Targets are for volumes only.
    pub(super) async fn clear(&self, target: &Path) -> Result<(), CallError> {
        for _ in 0..MOUNTS {
            let was_volume = match self.agent.unpublish(target).await {
                Ok(was_volume) => was_volume,
                Err(CallError::Agent { kind: FailureKind::Usage, .. }) => false,
                Err(error) => return Err(error),
            };
            if !self.is_mounted(target).await? {
                return Ok(());
            }
            if !was_volume {
                self.detach(target).await?;
            }
        }
        Ok(())
    }

    async fn detach(&self, target: &Path) -> Result<(), CallError> {
        let path = target.to_owned();
        let outcome = blocking(move || mounts::detach(&path)).await?;
        self.calls.metrics.removed_leftovers.inc();
        outcome.map_err(|cause| CallError::Io {
            action: "unmount what no agent knows at",
            path: target.to_owned(),
            cause,
            hint: "the driver's container must be privileged; by hand: umount --lazy",
        })
    }
}
