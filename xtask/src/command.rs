//! Running programs.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

/// `cargo` as it runs this program, in the checkout.
pub(crate) fn cargo(root: &Path) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}

/// Runs it, with its words on this terminal; an exit status other than 0 is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let words = words(command);
    let status = command.status().with_context(|| format!("running {words}"))?;
    ensure!(status.success(), "`{words}` failed ({status})");
    Ok(())
}

/// Runs it and returns what it wrote to stdout.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let words = words(command);
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("running {words}"))?;
    ensure!(output.status.success(), "`{words}` failed ({})", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether it runs and succeeds; its words go nowhere.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// Where a program is found, also one that only root uses.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = env::split_paths(&path).collect();
    directories.extend(["/usr/sbin".into(), "/sbin".into()]);
    directories.into_iter().map(|directory| directory.join(program)).find(|path| path.is_file())
}

/// The command as one would type it.
pub(crate) fn words(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    let program =
        Path::new(words[0].as_ref()).file_name().map_or(words[0].clone(), |name| name.to_string_lossy());
    std::iter::once(program.as_ref())
        .chain(words[1..].iter().map(AsRef::as_ref))
        .collect::<Vec<_>>()
        .join(" ")
}
