//! Cloud Storage FUSE with its file cache, the peer.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use weightd_harness::mounts;

use crate::wait_until;

/// How long it may take to mount.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where `cargo xtask bench` puts it.
const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../.tools/go/bin/gcsfuse");

/// A bucket that it has mounted. Unmounted, and its cache removed, when dropped.
pub struct Gcsfuse {
    directory: PathBuf,
    process: Child,
}

impl Gcsfuse {
    /// How far the kernel reads ahead of a reader, in KiB: what its documentation advises for model weights.
    pub const READ_AHEAD_KIB: u32 = 1024;

    /// Whether it can be run here.
    pub fn is_here() -> bool {
        Path::new(PROGRAM).exists()
    }

    /// Mounts the bucket `bench`, with an empty cache of files in a directory, which must not exist.
    ///
    /// # Errors
    /// When it does not come up; what it wrote is in the message.
    pub fn mount(directory: &Path, endpoint: &str) -> Result<Self> {
        Self::mount_with(directory, endpoint, &[], true)
    }

    /// The same with an environment, and without that cache if so wanted.
    ///
    /// # Errors
    /// When it does not come up; what it wrote is in the message.
    pub fn mount_with(
        directory: &Path,
        endpoint: &str,
        environment: &[(&'static str, String)],
        has_cache: bool,
    ) -> Result<Self> {
        fs::create_dir_all(directory.join("bucket"))?;
        let directory = directory.canonicalize()?;
        let cache = directory.join("cache");
        let config = Self::config(endpoint, has_cache.then_some(cache.as_path()));
        fs::write(directory.join("config.yaml"), config)?;
        let mut command = Command::new(Self::program()?);
        command.arg("--foreground").arg("--config-file").arg(directory.join("config.yaml"));
        command.args(["-o", "allow_other", "bench"]).arg(directory.join("bucket"));
        command.envs(environment.iter().cloned());
        let log = fs::File::create(directory.join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = command.spawn().context("starting gcsfuse")?;
        let mut mounted = Self { directory, process };
        let config = mounted.model().join("config.json");
        wait_until(PATIENCE, || config.exists() || !matches!(mounted.process.try_wait(), Ok(None)));
        let log = || fs::read_to_string(mounted.directory.join("log")).unwrap_or_default();
        ensure!(config.exists(), "gcsfuse does not mount: {}", log());
        mounted.read_ahead()?;
        Ok(mounted)
    }

    /// Has the kernel read that far ahead.
    fn read_ahead(&self) -> Result<()> {
        let device = fs::metadata(self.model())?.dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let setting = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
        fs::write(&setting, Self::READ_AHEAD_KIB.to_string()).with_context(|| format!("writing {setting}"))
    }

    /// Its configuration, with a cache of files in a directory, or without one: what its documentation advises for model weights.
    pub fn config(endpoint: &str, cache: Option<&Path>) -> String {
        let cache = cache.map_or_else(String::new, |directory| {
            format!(
                "cache-dir: {directory:?}\nfile-cache:\n  max-size-mb: -1\n  cache-file-for-range-read: true\n  \
                 enable-parallel-downloads: true\n"
            )
        });
        // The emulator has no folders of their own (HNS).
        format!(
            "{cache}implicit-dirs: true\nenable-hns: false\n\
             metadata-cache:\n  ttl-secs: -1\n  stat-cache-max-size-mb: -1\n  type-cache-max-size-mb: -1\n\
             gcs-auth:\n  anonymous-access: true\n\
             gcs-connection:\n  custom-endpoint: \"{endpoint}/storage/v1/\"\n"
        )
    }

    /// Its program.
    ///
    /// # Errors
    /// When it is not here.
    pub fn program() -> Result<PathBuf> {
        Path::new(PROGRAM).canonicalize().context("gcsfuse is not here: `cargo xtask bench` builds it")
    }

    /// Its process, for measuring.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The model's files.
    pub fn model(&self) -> PathBuf {
        Self::model_in(&self.directory)
    }

    /// Where they are when it is mounted in a directory.
    pub fn model_in(directory: &Path) -> PathBuf {
        directory.join("bucket/model")
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
