//! The tool that copies from everywhere to everywhere.

use std::{path::Path, process::Command};

use crate::world::Bucket;

/// How it is told to.
pub(crate) const SETTINGS: &str =
    "`rclone copy --transfers 8 --multi-thread-streams 8 --multi-thread-cutoff 64M`, then `sync`";

/// Copies the model into a directory, and has it durable.
pub(crate) fn copy(bucket: &Bucket, out: &Path) -> Command {
    let line = format!(
        "rclone copy :gcs:bench/model {out} --gcs-anonymous --gcs-endpoint {endpoint}/storage/v1/ --transfers 8 \
         --multi-thread-streams 8 --multi-thread-cutoff 64M && sync -f {out}",
        out = out.display(),
        endpoint = bucket.endpoint(),
    );
    let mut command = bucket.command("sh");
    command.args(["-c", &line]);
    command
}
