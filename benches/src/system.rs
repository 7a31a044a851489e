//! What the whole machine did, and what its kernel remembers.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// Ticks of `/proc/stat` in a second, the same on every Linux that this runs on.
const TICKS: u64 = 100;

/// Processor time that the machine's cores have spent on anything since it started. Steps of 10 ms.
///
/// # Errors
/// When `/proc/stat` does not look as it should.
pub fn busy() -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat")?;
    let total =
        text.lines().next().and_then(|line| line.strip_prefix("cpu ")).context("/proc/stat has no total")?;
    let ticks: Vec<u64> = total.split_whitespace().map_while(|word| word.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq: all but the two in the middle are work.
    let work: u64 = ticks
        .iter()
        .take(7)
        .enumerate()
        .filter(|(at, _)| !(3..=4).contains(at))
        .map(|(_, ticks)| ticks)
        .sum();
    Ok(Duration::from_millis(work * 1000 / TICKS))
}

/// Cores that share that time.
pub fn cores() -> f64 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    f64::from(u32::try_from(cores).unwrap_or(u32::MAX))
}

/// Has the kernel forget what it read: the next reader reads the disk. Needs root.
///
/// # Errors
/// When the kernel refuses.
pub fn forget_pages() -> Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "1").context("emptying the page cache, which needs root")
}

/// Most memory that a running process had resident at once, in MiB.
///
/// # Errors
/// When there is no such process.
pub fn peak_of(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} is gone"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

/// Processor time of a running process, in user and kernel mode. Steps of 10 ms.
///
/// # Errors
/// When there is no such process.
pub fn cpu_of(pid: u32) -> Result<Duration> {
    let text =
        fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid} is gone"))?;
    // Behind the name, which may hold anything: the 12th and 13th words are user and system time.
    let (_, rest) = text.rsplit_once(')').context("/proc/PID/stat has no name")?;
    let ticks: u64 =
        rest.split_whitespace().skip(11).take(2).filter_map(|word| word.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 1000 / TICKS))
}

/// Waits until something is so; says whether it was in time.
#[expect(clippy::disallowed_methods, reason = "there is no runtime here that this could block")]
pub fn wait_until(patience: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    while !is_so() {
        if started.elapsed() > patience {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}
