//! Google's own command.

use std::{path::Path, process::Command};

use crate::world::Bucket;

/// How it is told to.
pub(crate) const SETTINGS: &str =
    "`gcloud storage cp -r`, which chooses its processes, threads and slices by itself, then `sync`";
/// The same where nothing has to be durable.
pub(crate) const COPYING: &str = "`gcloud storage cp -r`";

/// Copies the model below a directory.
pub(crate) fn copy(bucket: &Bucket, out: &Path) -> Command {
    shell(bucket, &copying(out))
}

/// The same, and has it durable.
pub(crate) fn copy_durably(bucket: &Bucket, out: &Path) -> Command {
    shell(bucket, &format!("{} && sync -f {}", copying(out), out.display()))
}

fn copying(out: &Path) -> String {
    format!("gcloud storage cp -r gs://bench/model {}", out.display())
}

fn shell(bucket: &Bucket, line: &str) -> Command {
    let mut command = bucket.command("sh");
    command.envs(environment(bucket)).args(["-c", line]);
    command
}

/// What has it read this bucket, as nobody in particular.
pub(crate) fn environment(bucket: &Bucket) -> Vec<(&'static str, String)> {
    let ca = bucket.ca_file().map(|ca| ("REQUESTS_CA_BUNDLE", ca.display().to_string()));
    let endpoint = format!("{}/", bucket.endpoint());
    [
        ("CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE", endpoint),
        ("CLOUDSDK_AUTH_DISABLE_CREDENTIALS", "true".to_owned()),
        ("CLOUDSDK_CORE_DISABLE_PROMPTS", "1".to_owned()),
        // It would wait for a machine of Google's to say that it is one.
        ("CLOUDSDK_CORE_CHECK_GCE_METADATA", "false".to_owned()),
    ]
    .into_iter()
    .chain(ca)
    .collect()
}
