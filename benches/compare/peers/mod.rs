//! What a user would take instead, each told to do its best as its own documentation says.

pub(crate) mod fastsafetensors;
pub(crate) mod gcloud;
pub(crate) mod gcsfuse;
pub(crate) mod instanttensor;
pub(crate) mod rclone;
pub(crate) mod runai;

use std::process::Command;

/// What versions there are of the programs that are here, in words that go on.
pub(crate) fn versions() -> String {
    let programs = [("gcloud", "--version"), ("rclone", "version")];
    programs.into_iter().filter_map(|(program, argument)| version(program, argument)).collect()
}

/// The first line of what it says of itself.
fn version(program: &str, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().next().map(|line| format!(", {line}"))
}
