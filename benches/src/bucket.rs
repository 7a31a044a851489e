//! What is measured on: a bucket with a model in it.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use tempfile::TempDir;
use weightd_harness::{FakeGcs, GcsOptions, Model, ModelShape};

/// The bucket's name. The model's objects begin with `model/`.
pub const BUCKET: &str = "bench";
/// The model, as users name it.
pub const SOURCE: &str = "gs://bench/model";

/// What every benchmark can be told.
#[derive(Debug, Args)]
pub struct Common {
    /// Runs of each job.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Where to write models and stores; needs about 25 GB.
    #[arg(long, default_value = "target/bench")]
    pub directory: PathBuf,
    /// Writes the tables into this file as well.
    #[arg(long)]
    pub report: Option<PathBuf>,
}

/// An emulated bucket on loopback with one model in it. Gone when dropped.
#[derive(Debug)]
pub struct Bucket {
    /// The emulator.
    pub gcs: FakeGcs,
    /// The model, whose files are the bucket's objects.
    pub model: Model,
    _made: TempDir,
}

impl Bucket {
    /// Writes a model below a directory and serves it, over TLS or plain HTTP.
    ///
    /// # Errors
    /// When the model cannot be written, or the emulator does not come up.
    pub async fn make(directory: &Path, shape: &ModelShape, tls: bool) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        let made = tempfile::tempdir_in(directory)?;
        let model = Model::write(made.path(), shape)?;
        let gcs = FakeGcs::start_with(GcsOptions { memory: false, tls }).await?;
        gcs.create_bucket(BUCKET).await?;
        gcs.place_directory(BUCKET, "model", made.path())?;
        Ok(Self { gcs, model, _made: made })
    }
}
