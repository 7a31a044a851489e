//! Models in the bucket, and what their files' checksums are.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;
use weightd_harness::{Model, ModelShape, assert_same_tensors};

use crate::world::{World, done, weightctl};

/// A model in the bucket.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) source: String,
    directory: TempDir,
    model: Model,
}

impl Stored {
    /// Puts one into the bucket that everybody may read.
    pub(crate) fn new(world: &World, name: &str, shape: &ModelShape) -> Self {
        Self::within(world, "models", name, shape)
    }

    /// Puts one into a bucket.
    pub(crate) fn within(world: &World, bucket: &str, name: &str, shape: &ModelShape) -> Self {
        let directory = tempfile::tempdir_in(world.cluster.directory()).unwrap();
        let model = Model::write(&directory.path().join("model"), shape).unwrap();
        world.gcs.place_directory(bucket, name, &model.directory).unwrap();
        Self { source: format!("gs://{bucket}/{name}"), directory, model }
    }

    /// Checksums of its files as they lie at the origin, as `sha256sum` writes and checks them.
    pub(crate) fn sums(&self) -> String {
        sums_of(&self.model.directory)
    }

    /// The same of the aligned layout, which a store of this test's own has; its tensors are the model's.
    pub(crate) fn aligned_sums(&self, world: &World) -> String {
        let configuration = self.directory.path().join("weightd.toml");
        let store = self.directory.path().join("store");
        fs::write(&configuration, format!("[store]\ndirectory = {store:?}\nfloor = 0.0\n")).unwrap();
        let ask = |command: &mut Command| done(command.arg("--config").arg(&configuration).output().unwrap());
        ask(weightctl(world).args(["prefetch", &self.source, "--layout", "aligned"]));
        let path = ask(weightctl(world).args(["path", &self.source]));
        let shown = PathBuf::from(path.trim_end());
        assert_same_tensors(&self.model.directory, &shown);
        sums_of(&shown)
    }
}

fn sums_of(directory: &Path) -> String {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let output = Command::new("sha256sum").arg(&path).output().unwrap();
        let sum = done(output).split(' ').next().unwrap().to_owned();
        files.insert(path.file_name().unwrap().to_string_lossy().into_owned(), sum);
    }
    files
        .iter()
        .filter(|(name, _)| !name.starts_with('.'))
        .map(|(name, sum)| format!("{sum}  {name}\n"))
        .collect()
}
