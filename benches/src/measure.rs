//! What a program cost, from the kernel's own account of it.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use wait4::Wait4;

use crate::watchdog::Watchdog;

/// What one run of a program cost.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// From start to end.
    pub wall: Duration,
    /// Processor time of it and its children, in user and kernel mode.
    pub cpu: Duration,
    /// Most memory resident at once, in bytes.
    pub peak_bytes: u64,
}

/// Several runs of one program.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// One entry a run.
    pub costs: Vec<Cost>,
}

/// Runs a program to its end.
///
/// # Errors
/// When it cannot be started, or fails; what it wrote to stderr is in the message.
pub fn run(command: &mut Command) -> Result<Cost> {
    let name = command.get_program().to_string_lossy().into_owned();
    let started = Instant::now();
    let log = tempfile::NamedTempFile::new()?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.reopen()?);
    let child = command.spawn().with_context(|| format!("starting {name}"))?;
    let watchdog = Watchdog::of(child.id())?;
    let used = child.wait4().with_context(|| format!("waiting for {name}"))?;
    let wall = started.elapsed();
    if !used.status.success() {
        let words = std::fs::read_to_string(log.path()).unwrap_or_default();
        let why = watchdog.words().unwrap_or_else(|| used.status.to_string());
        bail!("{name} failed ({why}): {}", words.trim());
    }
    let cpu = used.rusage.utime + used.rusage.stime;
    Ok(Cost { wall, cpu, peak_bytes: used.rusage.maxrss })
}

/// A program built beside this one.
///
/// # Errors
/// When it is not there.
pub fn binary(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    if !path.exists() {
        bail!("{} is missing: run this by `cargo xtask bench`, which builds it", path.display());
    }
    path.canonicalize().context("finding a program")
}

/// One line about the machine, for a table's head.
pub fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("?", |(_, name)| name);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    let memory = read("/proc/meminfo");
    let kib: u64 =
        memory.lines().next().and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0);
    format!("{cores} cores of {model}, {} GiB, Linux {}", kib.div_ceil(1 << 20), kernel.trim())
}
