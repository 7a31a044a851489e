//! What a user would take instead, each told to do its best as its own documentation says.

pub(crate) mod fastsafetensors;
pub(crate) mod gcloud;
pub(crate) mod gcsfuse;
pub(crate) mod instanttensor;
pub(crate) mod rclone;
pub(crate) mod runai;

use std::process::Command;

use anyhow::{Context, Result};

/// What versions of programs there are, in words that go on.
pub(crate) fn versions() -> Result<String> {
    let programs = [("gcloud", "--version"), ("rclone", "version")];
    programs.into_iter().map(|(program, argument)| Ok(format!(", {}", version(program, argument)?))).collect()
}

/// The first line of what it says of itself.
fn version(program: &str, argument: &str) -> Result<String> {
    let output =
        Command::new(program).arg(argument).output().with_context(|| format!("starting {program}"))?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().next().unwrap_or(program).to_owned())
}
