//! `cargo xtask generate`: runs this program again with the compiler of the protocols built in.

use std::path::Path;

use anyhow::{Result, bail};

/// Compiles the protocols, or with `--check` says whether what is committed is what they give.
pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    match arguments {
        [] => generate(root),
        [flag] if flag == "--check" => check(root),
        _ => bail!("write: cargo xtask generate [--check]"),
    }
}

#[cfg(feature = "generate")]
fn generate(root: &Path) -> Result<()> {
    crate::generate::run(root)
}

#[cfg(not(feature = "generate"))]
fn generate(root: &Path) -> Result<()> {
    let again = ["run", "--quiet", "-p", "xtask", "--features", "generate", "--", "generate"];
    crate::command::run(crate::command::cargo(root).args(again))
}

/// The comparison is a test, so that it is made wherever all tests are.
fn check(root: &Path) -> Result<()> {
    let test = ["test", "--quiet", "-p", "xtask", "--features", "generate", "generate::"];
    crate::command::run(crate::command::cargo(root).args(test))
}
