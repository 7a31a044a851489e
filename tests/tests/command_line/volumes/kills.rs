//! Agents that are killed again and again while volumes are read as loaders read them.
//!
//! One volume is complete and read past the agent. The other loads: whenever it is complete it is removed and loaded
//! anew, so that agents are killed at all that happens meanwhile.

mod reading;

use std::{
    collections::BTreeMap,
    env, fmt, fs,
    path::PathBuf,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::sleep;
use weightd_harness::{FakeGcs, ModelShape, mounts, require};

use super::{Node, SOURCE, fuse, metric, outlive::node_with_keeper};
use crate::program::{PATIENCE, Running};
use reading::{OpenFiles, Way, read_somewhere};

/// How many seconds agents are killed for.
const SECONDS: &str = "WEIGHTD_TEST_KILL_SECONDS";
const SECONDS_BY_DEFAULT: u64 = 20;
/// The snapshot that is complete all the time.
const COMPLETE: &str = "gs://models/complete";
/// What `weightctl` says when an agent is killed under it; it is asked again then.
const AGENT_IS_GONE: [i32; 2] = [69, 75];
const NOT_FOUND: i32 = 66;
/// Errors that are worth reading.
const SHOWN_ERRORS: usize = 20;

/// What a thread does until the storm is over.
type Work = Box<dyn FnOnce(&Storm, StdRng) + Send>;

/// What everyone here shares.
struct Storm {
    node: Node,
    is_over: AtomicBool,
    /// Where the volume that loads is shown. Whoever reads it keeps it from being unmounted.
    loading: RwLock<Option<PathBuf>>,
    reads: AtomicU64,
    bytes: AtomicU64,
    loads: AtomicU64,
    errors: Mutex<Vec<String>>,
    /// Commands that had to be given again, by exit code.
    repeated: Mutex<BTreeMap<i32, u64>>,
}

impl fmt::Display for Storm {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [loads, reads, bytes] =
            [&self.loads, &self.reads, &self.bytes].map(|count| count.load(Ordering::Relaxed));
        let (errors, repeated) = (self.errors.lock().unwrap().len(), self.repeated.lock().unwrap());
        write!(
            formatter,
            "{loads} loads, {reads} reads, {bytes} bytes, {errors} errors, commands repeated by exit code: {repeated:?}"
        )
    }
}

impl Storm {
    fn new(node: Node) -> Self {
        Self {
            node,
            is_over: AtomicBool::default(),
            loading: RwLock::default(),
            reads: AtomicU64::default(),
            bytes: AtomicU64::default(),
            loads: AtomicU64::default(),
            errors: Mutex::default(),
            repeated: Mutex::default(),
        }
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    fn target(&self, name: &str) -> PathBuf {
        self.node.place.at(name)
    }

    fn names(&self) -> Vec<&String> {
        self.node.model.files.iter().filter(|name| name.ends_with(".safetensors")).collect()
    }

    /// Takes in what a read came to.
    fn count(&self, read: Result<u64, String>) {
        match read {
            Ok(bytes) => {
                self.reads.fetch_add(1, Ordering::Relaxed);
                self.bytes.fetch_add(bytes, Ordering::Relaxed);
            }
            Err(error) => {
                let mut errors = self.errors.lock().unwrap();
                if errors.len() < SHOWN_ERRORS {
                    eprintln!("{error}");
                }
                errors.push(error);
                drop(errors);
                // What fails at once fails often, and the first is what matters.
                thread::sleep(Duration::from_millis(100));
            }
        }
    }

    /// Reads anywhere in the complete volume, or in the one that loads, until the storm is over.
    fn keep_reading(&self, way: Way, is_loading: bool, mut random: StdRng) {
        let (origin, complete) = (&self.node.model.directory, self.target("complete"));
        while !self.is_over() {
            let loading = self.loading.read().unwrap();
            let shown = if is_loading { loading.as_ref() } else { Some(&complete) };
            let Some(shown) = shown else {
                drop(loading);
                thread::sleep(Duration::from_millis(10));
                continue;
            };
            self.count(read_somewhere(way, origin, shown, &self.names(), &mut random));
        }
    }

    /// Reads files that were opened once and stay open.
    fn keep_open(&self, mut random: StdRng) {
        let files = OpenFiles::open(&self.node.model.directory, &self.target("complete"), &self.names());
        while !self.is_over() {
            self.count(files.read(&mut random));
        }
    }

    /// Has `weightctl` do something, however many agents that takes.
    fn ask(&self, line: &str) {
        let (started, mut is_repeated) = (Instant::now(), false);
        loop {
            let ended = self.node.place.ask(line);
            let code = ended.code.unwrap();
            // What an agent removed just before it was killed is not there for the next.
            if code == 0 || (code == NOT_FOUND && is_repeated && line.starts_with("rm ")) {
                return;
            }
            is_repeated = true;
            let mut repeated = self.repeated.lock().unwrap();
            *repeated.entry(code).or_default() += 1;
            drop(repeated);
            let may_repeat = AGENT_IS_GONE.contains(&code) && started.elapsed() < PATIENCE;
            assert!(may_repeat, "{line}: {code}: {}", ended.words);
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn mount(&self, source: &str, target: &str, more: &str) {
        let target = self.target(target);
        self.ask(format!("mount {source} {} --layout original {more}", target.display()).trim_end());
    }

    fn until_complete(&self, target: &str) {
        let target = self.target(target).display().to_string();
        let started = Instant::now();
        loop {
            let listed = self.node.place.ask("mounts -o json");
            if listed.code == Some(0) {
                let listed = listed.json();
                let mut volumes = listed["volumes"].as_array().unwrap().iter();
                let volume = volumes.find(|volume| volume["target"] == *target);
                if volume.unwrap_or_else(|| panic!("{target} is gone: {listed}"))["state"] == "complete" {
                    return;
                }
            }
            assert!(started.elapsed() < PATIENCE, "{target} is not complete in {PATIENCE:?}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Loads a snapshot, again and again.
    fn keep_loading(&self, mut random: StdRng) {
        while !self.is_over() {
            self.mount(SOURCE, "first", "");
            let origin = &self.node.model.directory;
            let opened_early = OpenFiles::open(origin, &self.target("first"), &self.names());
            *self.loading.write().unwrap() = Some(self.target("first"));
            self.until_complete("first");
            // Beside files that are open since it loaded, it is mounted once more, and those files outlast their mount.
            self.mount(SOURCE, "second", "--mode fuse");
            self.count(read_somewhere(Way::Map, origin, &self.target("second"), &self.names(), &mut random));
            *self.loading.write().unwrap() = None;
            self.ask(&format!("umount {}", self.target("first").display()));
            for name in self.names() {
                let read = fs::read(self.target("second").join(name)).map_err(|error| error.to_string());
                let is_right = |read: Vec<u8>| {
                    let right = read == fs::read(origin.join(name)).unwrap();
                    if right { Ok(read.len() as u64) } else { Err(format!("all of {name} is wrong")) }
                };
                self.count(read.and_then(is_right));
                self.count(opened_early.read(&mut random));
            }
            drop(opened_early);
            self.ask(&format!("umount {}", self.target("second").display()));
            self.ask(&format!("rm {SOURCE}"));
            self.loads.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Kills agents for a while, as long as everyone is at work, and starts new ones; now and then one may end by itself.
/// Gives how many were killed, and the last.
async fn kill_agents(
    storm: &Storm,
    agent: Running,
    mut random: StdRng,
    at_work: &[JoinHandle<()>],
) -> (u64, Running) {
    let seconds = env::var(SECONDS).map_or(SECONDS_BY_DEFAULT, |seconds| seconds.parse().unwrap());
    let (mut agent, started, mut kills) = (agent, Instant::now(), 0);
    let end = Duration::from_secs(seconds);
    while started.elapsed() < end && !at_work.iter().any(JoinHandle::is_finished) {
        sleep(Duration::from_millis(random.random_range(200..3000))).await;
        if random.random_ratio(1, 5) {
            agent.signal("TERM");
            agent.ended().await;
        } else {
            agent.kill();
            kills += 1;
        }
        sleep(Duration::from_millis(random.random_range(0..300))).await;
        agent = storm.node.place.agent().await;
    }
    (kills, agent)
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_notice_nothing_of_agents_that_are_killed() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let (node, _keeper) = node_with_keeper(&gcs, &ModelShape::small(), "60s").await;
    gcs.place_directory("models", "complete", &node.model.directory).unwrap();
    let agent = node.place.agent().await;
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let storm = Arc::new(Storm::new(node));
    storm.mount(COMPLETE, "complete", "--mode fuse --wait");
    drop(OpenFiles::open(&storm.node.model.directory, &storm.target("complete"), &storm.names()));
    assert!(metric(&storm.node.place, "weightd_expose_passthrough_opens_total") > 0);

    let mut at_work = Vec::new();
    let mut begin = |work: Work| {
        let storm = Arc::clone(&storm);
        let random = StdRng::seed_from_u64(seed.wrapping_add(1 + at_work.len() as u64));
        at_work.push(thread::spawn(move || work(&storm, random)));
    };
    begin(Box::new(Storm::keep_loading));
    begin(Box::new(Storm::keep_open));
    for way in [Way::Call, Way::Map] {
        for is_loading in [false, true, true] {
            begin(Box::new(move |storm, random| storm.keep_reading(way, is_loading, random)));
        }
    }
    let (kills, _agent) = kill_agents(&storm, agent, StdRng::seed_from_u64(seed), &at_work).await;
    storm.is_over.store(true, Ordering::Release);
    let started = Instant::now();
    while !at_work.iter().all(JoinHandle::is_finished) {
        if started.elapsed() > PATIENCE {
            mounts::remove_below(&storm.target(""));
            panic!("someone hangs");
        }
        sleep(Duration::from_millis(50)).await;
    }
    at_work.into_iter().for_each(|work| work.join().unwrap());
    eprintln!("{kills} kills: {storm}");
    let errors = storm.errors.lock().unwrap().len();
    assert_eq!(errors, 0, "the first are above");
    assert!(kills > 0 && storm.loads.load(Ordering::Relaxed) > 0);
}
