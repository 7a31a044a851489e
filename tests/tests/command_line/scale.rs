//! A source of very many files.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::{
    place::{Place, number},
    program::Running,
};

const FILES: usize = 100_000;
const DIRECTORIES: usize = 100;

/// Buffers are 64 MiB here; the rest is what is known of each file. Measured: 375 MB.
const PEAK_BYTES: u64 = 400 << 20;

/// Processor seconds of the prefetch. Its time depends on who else uses the machine: 62 s beside three compilers on two
/// cores, where it took 47 processor seconds. Work that grew with the square of the files would take hours.
const CPU_SECONDS: f64 = 120.0;

/// What a run took.
struct Cost {
    time: Duration,
    cpu_seconds: f64,
    peak: u64,
}

impl std::fmt::Display for Cost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1?}, {:.1} processor seconds, {} MiB", self.time, self.cpu_seconds, self.peak >> 20)
    }
}

/// Runs a command to its end.
fn measured(command: &mut Command, output: &Path) -> Cost {
    let started = Instant::now();
    let words = fs::File::create(output.with_extension("words")).unwrap();
    let mut child =
        Running::start(command.stdout(fs::File::create(output).unwrap()).stderr(Stdio::from(words)));
    let id = child.0.id();
    let told = |name: &str| fs::read_to_string(format!("/proc/{id}/{name}")).unwrap_or_default();
    let (mut peak, mut cpu_seconds) = (0, 0.0);
    let ended = loop {
        // A process that has ended, and is not waited for yet, has no memory to tell of.
        peak = peak_of(&told("status")).unwrap_or(peak);
        cpu_seconds = cpu_seconds_of(&told("stat")).unwrap_or(cpu_seconds);
        if let Some(ended) = child.0.try_wait().unwrap() {
            break ended;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let words = fs::read_to_string(output.with_extension("words")).unwrap();
    assert!(ended.success(), "{ended}: {words}");
    Cost { time: started.elapsed(), cpu_seconds, peak }
}

fn peak_of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().unwrap() << 10)
}

/// User and system time, which the kernel counts in hundredths of a second. A program's name may hold spaces.
fn cpu_seconds_of(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit(')').next()?.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / 100.0)
}

#[test]
fn a_hundred_thousand_files_are_brought_shown_and_removed() {
    let place = Place::in_memory("");
    for directory in 0..DIRECTORIES {
        fs::create_dir_all(place.at(&format!("model/{directory:02}"))).unwrap();
    }
    for file in 0..FILES {
        let name = format!("model/{:02}/{file:06}.json", file % DIRECTORIES);
        fs::write(place.at(&name), format!("{{\"number\": {file}}}")).unwrap();
    }
    let source = format!("file://{}", place.at("model").display());
    let answer = place.at("answer");
    let run = |line: &str| measured(&mut place.embedded(&format!("{line} -o json")), &answer);
    let json = || serde_json::from_str::<serde_json::Value>(&fs::read_to_string(&answer).unwrap()).unwrap();

    let cost = run(&format!("prefetch {source}"));
    eprintln!("prefetch of {FILES} files: {cost}");
    assert_eq!(number(&json()["snapshot"], "object_count"), FILES as u64);
    let directory = json()["snapshot"]["directory"].as_str().unwrap().to_owned();
    assert_eq!(fs::read_to_string(format!("{directory}/99/099999.json")).unwrap(), "{\"number\": 99999}");
    assert!(cost.cpu_seconds > 1.0 && cost.cpu_seconds < CPU_SECONDS, "{cost}");
    assert!(cost.peak < PEAK_BYTES, "{cost}");

    let again = run(&format!("prefetch {source}"));
    eprintln!("again: {again}");
    assert_eq!(number(&json(), "fetched_bytes"), 0);
    assert!(again.cpu_seconds < CPU_SECONDS / 10.0, "{again}");
    for line in ["ls".to_owned(), format!("get {source}"), format!("rm {source}")] {
        let cost = run(&line);
        eprintln!("{line}: {cost}");
        assert!(cost.peak < PEAK_BYTES, "{line}: {cost}");
        match line.split(' ').next() {
            Some("get") => assert_eq!(json()["objects"].as_array().unwrap().len(), FILES),
            Some("ls") => assert_eq!(json()[0]["state"], "complete"),
            _ => assert!(number(&json(), "freed_bytes") > 0),
        }
    }
    place.run("ls").done();
    assert!(!fs::exists(directory).unwrap());
}
