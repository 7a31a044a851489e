//! Unpublishing: a volume goes, and its directory with it, whatever is left of it and whoever left it.

use std::{fs, io, path::Path};

use tokio::time::{Instant, timeout_at};
use weightd_proto::csi;

use super::{Node, blocking, present};
use crate::{error::CallError, target};

impl Node {
    pub(super) async fn unpublish(
        &self,
        request: csi::NodeUnpublishVolumeRequest,
    ) -> Result<csi::NodeUnpublishVolumeResponse, CallError> {
        present(&request.volume_id, "the volume's id")?;
        let target = target::check(&request.target_path, &self.kubelet_directory)?;
        let (busy, until) = (target.clone(), Instant::now() + self.ready_within);
        let Ok(turn) = timeout_at(until, self.turns.leave(&target)).await else {
            return Err(CallError::Busy { target: busy });
        };
        let node = self.clone();
        // As publishing, it is not cut off in the middle.
        let work = self.calls.running.spawn(async move {
            let _turn = turn;
            node.take_away(&target).await
        });
        match timeout_at(until + super::ANSWER, work).await {
            Ok(done) => done.map_err(|error| CallError::Defect(error.to_string()))??,
            Err(_) => return Err(CallError::Busy { target: busy }),
        }
        Ok(csi::NodeUnpublishVolumeResponse {})
    }

    async fn take_away(&self, target: &Path) -> Result<(), CallError> {
        match self.clear(target).await {
            Ok(()) => {}
            // There is nothing that an agent would be needed for.
            Err(CallError::Away { .. }) if !self.is_mounted(target).await? => {}
            Err(error) => return Err(error),
        }
        let path = target.to_owned();
        let is_gone = blocking(move || remove_directory(&path)).await?.map_err(|cause| CallError::Io {
            action: "remove",
            path: target.to_owned(),
            cause,
            hint: "nothing is mounted there any more; remove what is in it by hand",
        })?;
        if is_gone {
            tracing::info!(target = %target.display(), "unpublished");
        }
        Ok(())
    }
}

/// Removes an empty directory; says whether there was one. What has files in it was not made by a volume.
fn remove_directory(target: &Path) -> io::Result<bool> {
    match fs::remove_dir(target) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_goes_and_files_stay() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("mount");
        assert!(!remove_directory(&target).unwrap());
        fs::create_dir(&target).unwrap();
        assert!(remove_directory(&target).unwrap());
        fs::create_dir(&target).unwrap();
        fs::write(target.join("mine"), "x").unwrap();
        remove_directory(&target).unwrap_err();
        assert!(target.join("mine").exists());
    }
}
