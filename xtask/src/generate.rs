//! `cargo xtask generate`: compiles the protocol buffers to the Rust that is committed in `proto/src/generated`.
//!
//! The result is committed so that a build needs neither protoc nor a build script, and so that a change of the
//! protocol shows in review. protox compiles the `.proto` files in plain Rust.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// The protocols, relative to `proto/`; each gives one module named after its package.
const PROTOCOLS: [&str; 5] = [
    "csi/v1/csi.proto",
    "pluginregistration/v1/registration.proto",
    "weightd/v1/handoff.proto",
    "weightd/v1/volumes.proto",
    "weightd/v1/weights.proto",
];

/// Writes the generated Rust below `root`, the workspace's directory.
pub(crate) fn run(root: &Path) -> Result<()> {
    let target = committed(root);
    fs::create_dir_all(&target).with_context(|| format!("creating {}", target.display()))?;
    for (name, text) in render(root)? {
        let path = target.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// Where the generated files are committed.
fn committed(root: &Path) -> PathBuf {
    root.join("proto/src/generated")
}

/// The generated files, as name and text, sorted by name.
fn render(root: &Path) -> Result<Vec<(String, String)>> {
    let includes = root.join("proto");
    let descriptors = protox::compile(PROTOCOLS, [&includes]).context("compiling the .proto files")?;
    let scratch = tempfile::tempdir().context("making a temporary directory")?;
    tonic_prost_build::configure()
        .out_dir(scratch.path())
        .emit_rerun_if_changed(false)
        // Who speaks over a hand-off socket only needs the messages.
        .client_mod_attribute(".", "#[cfg(feature = \"grpc\")]")
        .server_mod_attribute(".", "#[cfg(feature = \"grpc\")]")
        // They hold secrets: `proto/src/secrets.rs` shows them without.
        .skip_debug([".weightd.v1.Pod", ".weightd.v1.ServiceAccountToken"])
        .compile_fds(descriptors)
        .context("generating Rust")?;
    let mut files = Vec::new();
    for entry in fs::read_dir(scratch.path())? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        files.push((name, fs::read_to_string(&path)?));
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn committed_rust_is_what_the_protocols_give() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for (name, text) in render(root).unwrap() {
            let path = committed(root).join(&name);
            let there = fs::read_to_string(&path).unwrap_or_default();
            assert!(there == text, "{name} is stale: run `cargo xtask generate` and commit what changes");
        }
    }
}
