//! `cargo xtask vllm`: the package `weightd` in model servers as they are. `benches/model-servers` holds the cases.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{command, tools};

/// Installs vLLM and the package beside it, as a user would, and runs the cases.
pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    tools::python(root)?;
    tools::vllm(root)?;
    // Of the whole workspace, so that what it shares with the tests is compiled once.
    command::run(command::cargo(root).args(["build", "--workspace", "--bins"]))?;
    let here = env::current_exe().context("Linux knows a program's path")?;
    let target = here.ancestors().nth(2).context("cargo puts programs two folders down")?;
    let wheel = wheel(root, &target.join("wheel"))?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"];
    let mut install = Command::new(root.join(".tools/vllm/bin/python"));
    command::run(install.args(pip).arg("--force-reinstall").arg(wheel))?;
    command::run(Command::new(here.with_file_name("model-servers")).args(arguments).current_dir(root))
}

/// The wheel of the package. It is compiled as by the test that packs one, which has left most of it there.
fn wheel(root: &Path, target: &Path) -> Result<PathBuf> {
    println!("Packing the Python package ...");
    let out = target.join("packed");
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| format!("emptying {}", out.display()))?;
    }
    let environment = root.join(".tools/venv/bin");
    let mut maturin = Command::new(environment.join("maturin"));
    maturin.args(["build", "--quiet", "--locked", "--profile", "dev", "--compatibility", "linux"]);
    maturin.args([
        "--config",
        "profile.dev.opt-level=0",
        "--config",
        r#"profile.dev.package."*".opt-level=0"#,
    ]);
    maturin.arg("--interpreter").arg(environment.join("python")).arg("--out").arg(&out);
    command::run(maturin.arg("--target-dir").arg(target).current_dir(root.join("python")))?;
    let packed = fs::read_dir(&out)?.next().context("maturin packed nothing")??;
    Ok(packed.path())
}
