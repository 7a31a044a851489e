//! runai-model-streamer: from files or a bucket to tensors.

use anyhow::Result;
use weightd_benches::Client;

use crate::world::{Bucket, World};

/// How it is told to, from a bucket.
pub(crate) const SETTINGS: &str =
    "`SafetensorsStreamer.stream_files` of all shards, its own number of threads (16)";

/// One that reads from a bucket.
pub(crate) fn of_bucket(world: &World, bucket: &Bucket, source: &str, how: &str) -> Result<Client> {
    let endpoint = bucket.endpoint();
    let mut environment = vec![
        // Its list of files is made by Google's own client, which is told so.
        ("STORAGE_EMULATOR_HOST", endpoint),
        ("GOOGLE_CLOUD_PROJECT", "none"),
        ("CLOUD_STORAGE_EMULATOR_ENDPOINT", endpoint),
        ("RUNAI_STREAMER_GCS_USE_ANONYMOUS_CREDENTIALS", "true"),
    ];
    let ca = bucket.ca_file().map(|path| path.display().to_string()).unwrap_or_default();
    if !ca.is_empty() {
        environment.push(("REQUESTS_CA_BUNDLE", ca.as_str()));
    }
    world.client_of(bucket, "by_runai.py", source, how, &environment)
}

/// One that reads files.
pub(crate) fn of_files(world: &World, directory: &str) -> Result<Client> {
    world.client("by_runai.py", directory, "", &[])
}
