//! Running programs of a cluster.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

/// More than anything of a cluster takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// Starts a program that ends with the thread that started it, its words in a file.
pub(super) fn start(log: &Path, program: &Path, arguments: &[String]) -> Result<Child> {
    let words = fs::File::create(log).with_context(|| format!("writing {}", log.display()))?;
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(arguments);
    command.stdin(Stdio::null()).stdout(words.try_clone()?).stderr(words);
    command.spawn().with_context(|| format!("starting {}", program.display()))
}

/// Runs a command line to its end; an error has what it said.
pub(super) fn run(line: &str) -> Result<()> {
    let mut words = line.split(' ');
    output(Command::new(words.next().unwrap_or_default()).args(words)).map(drop)
}

/// Runs a command to its end and gives what it wrote to stdout; an error has what it wrote to stderr.
pub(super) fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("running {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed ({}): {}", output.status, said.trim_end());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Asks again until it is so. What failed last is the error when it never is.
pub(super) fn until(what: &str, mut ask: impl FnMut() -> Result<()>) -> Result<()> {
    let started = Instant::now();
    loop {
        match ask() {
            Ok(()) => return Ok(()),
            Err(error) if started.elapsed() > PATIENCE => {
                return Err(error.context(format!("waited {} s until {what}", PATIENCE.as_secs())));
            }
            Err(_) => pause(),
        }
    }
}

/// The same with a program that must not end meanwhile; if it does, the end of its log is the error.
pub(super) fn until_up(
    what: &str,
    child: &mut Child,
    log: &Path,
    mut ask: impl FnMut() -> Result<()>,
) -> Result<()> {
    let mut ended = None;
    let up = until(what, || {
        ended = child.try_wait()?;
        if ended.is_some() { Ok(()) } else { ask() }
    });
    let last = || {
        let text = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        format!("{}: {}", log.display(), lines[lines.len().saturating_sub(15)..].join("\n"))
    };
    match ended {
        Some(status) => bail!("it ended ({status}) before {what}: {}", last()),
        None => up.with_context(last),
    }
}

#[expect(clippy::disallowed_methods, reason = "the runner has no async runtime that this could block")]
fn pause() {
    std::thread::sleep(Duration::from_millis(100));
}
