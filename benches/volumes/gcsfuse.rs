//! Cloud Storage FUSE with its file cache, the peer.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use weightd_benches::wait_until;
use weightd_harness::mounts;

/// How long it may take to mount.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where `cargo xtask bench` puts it.
const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../.tools/go/bin/gcsfuse");

/// A bucket that it has mounted. Unmounted, and its cache removed, when dropped.
pub(crate) struct Gcsfuse {
    directory: PathBuf,
    process: Child,
}

impl Gcsfuse {
    /// Whether it can be run here.
    pub(crate) fn is_here() -> bool {
        Path::new(PROGRAM).exists()
    }

    /// Mounts the bucket `bench`, with an empty cache in a directory, which must not exist.
    pub(crate) fn mount(directory: &Path, endpoint: &str) -> Result<Self> {
        fs::create_dir_all(directory.join("bucket"))?;
        let directory = directory.canonicalize()?;
        // What its documentation advises for model weights. The emulator has no folders of their own (HNS).
        let config = format!(
            "cache-dir: {:?}\nimplicit-dirs: true\nenable-hns: false\n\
             file-cache:\n  max-size-mb: -1\n  cache-file-for-range-read: true\n  enable-parallel-downloads: true\n\
             metadata-cache:\n  ttl-secs: -1\n  stat-cache-max-size-mb: -1\n  type-cache-max-size-mb: -1\n\
             gcs-auth:\n  anonymous-access: true\n\
             gcs-connection:\n  custom-endpoint: \"{endpoint}/storage/v1/\"\n",
            directory.join("cache"),
        );
        fs::write(directory.join("config.yaml"), config)?;
        let mut command = Command::new(PROGRAM);
        command.arg("--foreground").arg("--config-file").arg(directory.join("config.yaml"));
        command.args(["-o", "allow_other", "bench"]).arg(directory.join("bucket"));
        let log = fs::File::create(directory.join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = command.spawn().context("starting gcsfuse")?;
        let mounted = Self { directory, process };
        let is_mounted = wait_until(PATIENCE, || mounted.model().join("config.json").exists());
        let log = || fs::read_to_string(mounted.directory.join("log")).unwrap_or_default();
        ensure!(is_mounted, "gcsfuse does not mount: {}", log());
        Ok(mounted)
    }

    /// The model's files.
    pub(crate) fn model(&self) -> PathBuf {
        self.directory.join("bucket/model")
    }
}

impl Drop for Gcsfuse {
    fn drop(&mut self) {
        mounts::remove_below(&self.directory);
        wait_until(Duration::from_secs(5), || !matches!(self.process.try_wait(), Ok(None)));
        // Either fails only when it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            eprintln!("removing {}: {error}", self.directory.display());
        }
        rustix::fs::sync();
    }
}
