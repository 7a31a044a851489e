//! The main job on one machine, with nothing to configure: `cargo xtask demo` builds and runs this.
#![expect(clippy::print_stdout, reason = "it tells a story")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use safetensors::SafeTensors;
use tempfile::TempDir;
use weightd_harness::{FakeGcs, Model, ModelShape, Pattern, Tensor, assert_same_tensors, binary};

const URI: &str = "gs://demo/model";

#[tokio::main]
async fn main() -> Result<()> {
    // Directories and the emulator end with `run`, also when it is interrupted.
    tokio::select! {
        done = run() => done,
        interrupt = tokio::signal::ctrl_c() => {
            interrupt?;
            bail!("interrupted")
        }
    }
}

async fn run() -> Result<()> {
    let scratch = tempfile::Builder::new().prefix("weightd-demo-").tempdir()?;
    let shape = ModelShape::demo();
    let model = Model::write(&scratch.path().join("origin"), &shape)?;
    step(&format!(
        "Made a Llama-shaped model: {:.0} MB of bf16 tensors in {} safetensors files.",
        model.tensor_bytes as f64 / 1e6,
        model.shards.len()
    ));

    let gcs = FakeGcs::start().await?;
    gcs.create_bucket("demo").await?;
    for file in &model.files {
        gcs.upload_file("demo", &format!("model/{file}"), &model.directory.join(file)).await?;
    }
    step(&format!("A GCS emulator on loopback serves it as {URI} at {}.", gcs.endpoint()));

    fs::write(scratch.path().join("weightd.toml"), "[store]\nfloor = 0.0\n")?;
    let weightctl = Weightctl { program: binary("weightctl"), gcs: gcs.endpoint(), scratch };
    step("weightctl brings it into a local store. Without a daemon, it does the agent's work itself:");
    weightctl.run(&["prefetch", URI])?;
    step("The store holds a snapshot: these objects, of these generations.");
    weightctl.run(&["ls"])?;
    weightctl.run(&["get", URI])?;
    step("Every chunk has a checksum of its own. Read from the disk and check them:");
    weightctl.run(&["verify", URI])?;

    step("A complete snapshot is a plain directory, which any loader can map:");
    let directory = weightctl.directory()?;
    read_back(&model, shape.seed, &directory)?;
    step("Done: the weights are here, verified. What was made for this is removed.");
    Ok(())
}

/// Reads one tensor as a loader would, and compares; then all of them.
fn read_back(model: &Model, seed: u64, directory: &Path) -> Result<()> {
    let (shard, tensor) = model.shards.iter().enumerate().nth(1).context("more than one file")?;
    let tensor: &Tensor =
        tensor.iter().max_by_key(|tensor| tensor.bytes()).context("a tensor in each file")?;
    let file = directory.join(&model.files[shard]);
    let bytes = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
    let stored = SafeTensors::deserialize(&bytes)?;
    let stored = stored.tensor(&tensor.name)?;
    let length = usize::try_from(tensor.bytes())?;
    let right = Pattern::of_tensor(seed, &tensor.name).bytes(0, length) == stored.data();
    ensure!(right, "{} differs from what was uploaded", tensor.name);
    println!(
        "  {} {:?} {}: all {length} bytes are those of the original",
        tensor.name,
        stored.shape(),
        stored.dtype()
    );
    // Panics with the names of those that differ.
    assert_same_tensors(&model.directory, directory);
    println!("  and so are those of all {} tensors", model.shards.iter().map(Vec::len).sum::<usize>());
    Ok(())
}

/// The command line, with the emulator as GCS.
struct Weightctl {
    program: PathBuf,
    gcs: String,
    scratch: TempDir,
}

impl Weightctl {
    fn command(&self, arguments: &[&str]) -> Command {
        println!("  $ weightctl --store STORE {}", arguments.join(" "));
        let mut command = Command::new(&self.program);
        // What is brought here is gone in a minute: it may take room that an agent would leave free.
        command.arg("--config").arg(self.scratch.path().join("weightd.toml"));
        command.arg("--store").arg(self.scratch.path().join("store")).args(arguments);
        command.env("STORAGE_EMULATOR_HOST", &self.gcs).env("NO_PROXY", "127.0.0.1");
        // What the user has set for real work must not decide over this store.
        command.env_remove("WEIGHTD_SOCKET").env_remove("WEIGHTD_STORE");
        command
    }

    fn run(&self, arguments: &[&str]) -> Result<()> {
        let status = self.command(arguments).status().context("starting weightctl")?;
        ensure!(status.success(), "weightctl failed ({status})");
        Ok(())
    }

    /// Where the snapshot lies.
    fn directory(&self) -> Result<PathBuf> {
        let output = self.command(&["path", URI]).output().context("starting weightctl")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let directory = PathBuf::from(String::from_utf8(output.stdout)?.trim_end());
        println!("{}", directory.display());
        Ok(directory)
    }
}

fn step(words: &str) {
    println!("\n{words}");
}
