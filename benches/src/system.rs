//! What the whole machine did, and what its kernel remembers.

use std::{
    fs, io,
    os::unix::fs::FileExt,
    panic::resume_unwind,
    path::Path,
    thread,
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

/// Has the kernel forget what it read of one file, which must be nobody's mapping.
///
/// # Errors
/// When it cannot be opened.
pub fn forget_pages_of(path: &Path) -> Result<()> {
    let file = fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}

/// Takes all free memory from the hypervisor, by reading holes of a file into the page cache, where the kernel finds it
/// again at once when it wants some. A machine of its own has its memory; in a virtual one that gives free memory back,
/// every first touch of a page would be measured too, and that costs several times what copying it does.
///
/// # Errors
/// When the file cannot be made or read.
pub fn take_memory(directory: &Path) -> Result<()> {
    take(directory, u64::MAX)
}

/// Takes so much free memory from the hypervisor, until it is given up.
///
/// # Errors
/// When the file cannot be made or read.
pub fn hold_memory(directory: &Path, bytes: u64) -> Result<()> {
    take(directory, bytes)
}

/// Gives up what was held or taken: whoever wants memory next has it at once. For the moment before a job, because the kernel
/// gives free memory back to the hypervisor after some seconds.
///
/// # Errors
/// When nothing was held.
pub fn give_up_memory(directory: &Path) -> Result<()> {
    fs::remove_file(directory.join("holes")).context("removing a file of holes")
}

/// Reads a file of holes that is as long as memory is free, or as is wanted.
fn take(directory: &Path, wanted: u64) -> Result<()> {
    let path = directory.join("holes");
    let file = fs::OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
    let file = &file.with_context(|| format!("opening {}", path.display()))?;
    let bytes = available("MemFree:")?.saturating_sub(KEPT_FREE_BYTES).min(wanted);
    // What is in the page cache of an earlier file behind that is gone.
    file.set_len(bytes)?;
    // A part for each core: one alone waits for the hypervisor most of the time.
    let parts = thread::available_parallelism()?.get() as u64;
    let part = bytes.div_ceil(parts);
    let read = |number: u64| read_all(file, number * part, bytes.min((number + 1) * part));
    thread::scope(|scope| {
        let parts: Vec<_> = (0..parts).map(|number| scope.spawn(move || read(number))).collect();
        parts.into_iter().try_for_each(|part| part.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
    .with_context(|| format!("reading {}", path.display()))
}

/// Reads a range of a file.
fn read_all(file: &fs::File, mut from: u64, to: u64) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    while from < to {
        from += match file.read_at(&mut buffer, from)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => read as u64,
        };
    }
    Ok(())
}

/// What the kernel itself wants to keep free.
const KEPT_FREE_BYTES: u64 = 256 << 20;

/// Memory that programs can still have, in bytes.
///
/// # Errors
/// When the kernel does not say.
pub fn memory_available() -> Result<u64> {
    available("MemAvailable:")
}

/// Bytes that `/proc/meminfo` says of something.
fn available(what: &str) -> Result<u64> {
    bytes_in(&fs::read_to_string("/proc/meminfo")?, what)
}

/// Bytes that a process's status says of something, or another of its files of that form.
fn told_of(pid: u32, file: &str, what: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/{file}");
    bytes_in(&fs::read_to_string(path).with_context(|| format!("process {pid} is gone"))?, what)
}

/// Bytes that a text tells of something, in a line that begins so and counts KiB.
fn bytes_in(text: &str, what: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(what));
    let words = line.with_context(|| format!("there is no {what}"))?.trim().trim_end_matches(" kB");
    Ok(words.parse::<u64>()? << 10)
}

/// Most memory that a running process had resident at once, in bytes.
///
/// # Errors
/// When there is no such process.
pub fn peak_of(pid: u32) -> Result<u64> {
    told_of(pid, "status", "VmHWM:")
}

/// Has the kernel forget that peak: it begins again at what the process has now. Needs root.
///
/// # Errors
/// When there is no such process.
pub fn forget_peak_of(pid: u32) -> Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").with_context(|| format!("process {pid} is gone"))
}

/// Most memory that running processes had resident, in bytes. Memory that they share now counts once.
///
/// # Errors
/// When one of them is gone.
pub fn peak_together(pids: &[u32]) -> Result<u64> {
    let one = |pid: &u32| -> Result<u64> {
        let status = |what| told_of(*pid, "status", what);
        let own = status("VmHWM:")?.saturating_sub(status("RssShmem:")?);
        Ok(own + told_of(*pid, "smaps_rollup", "Pss_Shmem:")?)
    };
    pids.iter().map(one).sum()
}

/// Memory of a running process, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// What it has, where each page that others have too counts by its part (PSS).
    pub proportional: u64,
    /// What is its own and no file's: what it copied, if it copied anything.
    pub anonymous: u64,
}

/// Memory of a running process.
///
/// # Errors
/// When there is no such process.
pub fn memory_of(pid: u32) -> Result<Memory> {
    let bytes = |what| told_of(pid, "smaps_rollup", what);
    Ok(Memory { proportional: bytes("Pss:")?, anonymous: bytes("Anonymous:")? })
}

/// Bytes that a running process has written to files and sockets so far.
///
/// # Errors
/// When there is no such process.
pub fn written_by(pid: u32) -> Result<u64> {
    let text =
        fs::read_to_string(format!("/proc/{pid}/io")).with_context(|| format!("process {pid} is gone"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("wchar: ")).context("no wchar")?;
    Ok(line.trim().parse()?)
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
