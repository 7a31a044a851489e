//! Google's own command.

use std::{path::Path, process::Command};

use crate::world::Bucket;

/// How it is told to.
pub(crate) const SETTINGS: &str =
    "`gcloud storage cp -r`, which chooses its processes, threads and slices by itself, then `sync`";

/// Copies the model below a directory, and has it durable.
pub(crate) fn copy(bucket: &Bucket, out: &Path) -> Command {
    let line = format!("gcloud storage cp -r gs://bench/model {out} && sync -f {out}", out = out.display());
    let mut command = bucket.command("sh");
    command.env("CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE", format!("{}/", bucket.endpoint()));
    command.env("CLOUDSDK_AUTH_DISABLE_CREDENTIALS", "true").env("CLOUDSDK_CORE_DISABLE_PROMPTS", "1");
    if let Some(ca) = bucket.ca_file() {
        command.env("REQUESTS_CA_BUNDLE", ca);
    }
    command.args(["-c", &line]);
    command
}
