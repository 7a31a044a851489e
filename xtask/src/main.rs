//! The task runner: `cargo xtask TASK`.

mod generate;

use std::{env, path::Path};

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the workspace")?;
    match env::args().nth(1).as_deref() {
        Some("generate") => generate::run(root),
        _ => bail!("write: cargo xtask generate"),
    }
}
