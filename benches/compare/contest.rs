//! One job, done by everyone in turn: whoever goes first in one round goes last in the next, and ratios are taken round by round, so
//! that they hold although the machine does not keep its speed.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use anyhow::{Result, ensure};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use weightd_benches::{Table, gibibytes, gigabytes, mebibytes, median};

/// How many times weightd's time a peer may take before it is left with the rounds that it has: so far behind, nothing hangs on more.
const FAR_BEHIND: f64 = 2.0;

/// Whether someone wants it to end.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Waits until someone wants it to end, after which no contest goes on.
pub(crate) async fn stop_when_interrupted() {
    let Ok(mut terminated) = signal(SignalKind::terminate()) else { return };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminated.recv() => {}
    }
    INTERRUPTED.store(true, Relaxed);
}

/// What one run did.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Run {
    /// Until the job was done, in seconds.
    pub(crate) wall: f64,
    /// Until the first tensor was there, in seconds, where that is seen.
    pub(crate) first: Option<f64>,
    /// Processor time of everything that worked for it but the bucket, in seconds.
    pub(crate) cpu: f64,
    /// Most memory resident at once in those processes, in bytes, where that is seen.
    pub(crate) peak_bytes: Option<u64>,
    /// What the bucket sent, in bytes.
    pub(crate) origin_bytes: u64,
    /// What followed what, where that is seen. Together they are all of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) phases: Vec<Phase>,
}

/// A part of a run.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Phase {
    pub(crate) name: &'static str,
    pub(crate) seconds: f64,
}

/// How contests are held.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    pub(crate) rounds: usize,
    /// What the names of those begin with who take part; everyone does if there are none.
    pub(crate) only: Vec<String>,
}

impl Terms {
    /// The same with so many rounds at most.
    pub(crate) fn at_most(&self, rounds: usize) -> Self {
        Self { rounds: self.rounds.min(rounds), only: self.only.clone() }
    }

    fn admit(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| name.starts_with(only.as_str()))
    }
}

/// Someone who can do the job.
pub(crate) struct Contender<'w> {
    /// What it is called.
    name: String,
    /// How it was told to do it: its documented best, in words.
    settings: String,
    role: Role,
    /// Bytes of work; 0 where there is no such number.
    bytes: u64,
    run: Box<dyn FnMut() -> Result<Run> + 'w>,
}

/// What a contender is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// What the hardware allows.
    Limit,
    /// What all this is about.
    Own,
    /// What a user would take instead.
    Peer,
}

/// A job, and who does it.
pub(crate) struct Contest<'w> {
    title: String,
    about: String,
    /// Of work, for whoever is added from now on.
    bytes: u64,
    contenders: Vec<Contender<'w>>,
    bounded_by: String,
}

/// As much of a limit's speed as is wanted of weightd.
const ENOUGH: f64 = 0.9;

/// How a job went.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Outcome {
    pub(crate) title: String,
    pub(crate) about: String,
    pub(crate) contenders: Vec<Standing>,
    /// What holds weightd back, and what would help.
    pub(crate) bounded_by: String,
}

/// How one contender did.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Standing {
    pub(crate) name: String,
    pub(crate) settings: String,
    pub(crate) role: Role,
    /// Bytes of work; 0 where there is no such number.
    pub(crate) bytes: u64,
    /// One a round; empty if it failed.
    pub(crate) runs: Vec<Run>,
    /// Why it has none.
    pub(crate) failure: Option<String>,
}

impl<'w> Contest<'w> {
    pub(crate) fn new(title: impl Into<String>, about: impl Into<String>, bytes: u64) -> Self {
        Self {
            title: title.into(),
            about: about.into(),
            bytes,
            contenders: Vec::new(),
            bounded_by: String::new(),
        }
    }

    /// Says what holds weightd back, and what would help: told of a job in which it is not first, or short of [`ENOUGH`].
    pub(crate) fn bounded_by(mut self, what: &str) -> Self {
        what.clone_into(&mut self.bounded_by);
        self
    }

    /// Adds a contender.
    pub(crate) fn with(
        mut self,
        role: Role,
        name: impl Into<String>,
        settings: impl Into<String>,
        run: impl FnMut() -> Result<Run> + 'w,
    ) -> Self {
        let (name, settings) = (name.into(), settings.into());
        let bytes = self.bytes;
        self.contenders.push(Contender { name, settings, role, bytes, run: Box::new(run) });
        self
    }

    /// Holds it, and prints how it went.
    ///
    /// # Errors
    /// When weightd or a limit fails.
    pub(crate) fn hold(mut self, terms: &Terms) -> Result<Outcome> {
        let contenders = self.standings(terms)?;
        Ok(Outcome::new(self.title, self.about, contenders, self.bounded_by))
    }

    /// How everyone did. Who fails once is out, and the table says why: a peer that does not run here is no reason to measure
    /// nothing. A peer that is far behind is not asked again.
    ///
    /// # Errors
    /// When weightd or a limit fails.
    pub(crate) fn standings(&mut self, terms: &Terms) -> Result<Vec<Standing>> {
        self.contenders.retain(|contender| terms.admit(&contender.name));
        let mut standings: Vec<Standing> = self.contenders.iter().map(Contender::standing).collect();
        for round in 0..terms.rounds {
            for at in 0..self.contenders.len() {
                let at = (at + round) % self.contenders.len();
                // Who has missed a round has failed, or was far behind.
                let is_out = standings[at].runs.len() < round;
                if is_out || is_far_behind(&standings[at], &standings) {
                    continue;
                }
                let (contender, standing) = (&mut self.contenders[at], &mut standings[at]);
                ensure!(!INTERRUPTED.load(Relaxed), "interrupted");
                eprint!("{}, round {}: {}", self.title, round + 1, contender.name);
                match (contender.run)() {
                    Ok(run) => {
                        eprintln!(": {:.2} s", run.wall);
                        standing.runs.push(run);
                    }
                    Err(error) if contender.role == Role::Peer && !INTERRUPTED.load(Relaxed) => {
                        eprintln!("\nwarning: {} FAILED AND IS NOT MEASURED: {error:#}", contender.name);
                        standing.runs.clear();
                        standing.failure = Some(format!("{error:#}"));
                    }
                    Err(error) => {
                        eprintln!();
                        return Err(error.context(contender.name.clone()));
                    }
                }
            }
        }
        Ok(standings)
    }
}

impl Contender<'_> {
    fn standing(&self) -> Standing {
        let (name, settings) = (self.name.clone(), self.settings.clone());
        Standing { name, settings, role: self.role, bytes: self.bytes, runs: Vec::new(), failure: None }
    }
}

/// Whether a peer is so much slower than weightd, in each of its ways, that nothing is gained by more rounds.
fn is_far_behind(standing: &Standing, all: &[Standing]) -> bool {
    let seconds = |standing: &Standing| standing.median(|run| run.wall);
    let own = all.iter().filter(|standing| standing.role == Role::Own && !standing.runs.is_empty());
    let slowest = own.map(seconds).reduce(f64::max);
    standing.role == Role::Peer
        && !standing.runs.is_empty()
        && slowest.is_some_and(|slowest| seconds(standing) > FAR_BEHIND * slowest)
}

impl Standing {
    /// Median of something, in its unit.
    pub(crate) fn median(&self, of: impl Fn(&Run) -> f64) -> f64 {
        median(self.runs.iter().map(of))
    }

    /// The parts of its runs, of each the median.
    pub(crate) fn phases(&self) -> Vec<Phase> {
        let first = self.runs.first().map(|run| run.phases.as_slice()).unwrap_or_default();
        let middle = |at: usize| self.median(|run| run.phases.get(at).map_or(0.0, |phase| phase.seconds));
        first.iter().enumerate().map(|(at, phase)| Phase { seconds: middle(at), ..*phase }).collect()
    }

    /// How many times as fast this was as another, the median of rounds.
    pub(crate) fn speed_relative_to(&self, other: &Self) -> f64 {
        // Where there is more to do, more time is no less speed.
        let work = if other.bytes == 0 { 1.0 } else { gigabytes(self.bytes) / gigabytes(other.bytes) };
        median(self.runs.iter().zip(&other.runs).map(|(own, other)| work * other.wall / own.wall))
    }

    /// Work done in a second, in GB/s, where there is such a number.
    pub(crate) fn speed(&self) -> Option<f64> {
        (self.bytes > 0).then(|| gigabytes(self.bytes) / self.median(|run| run.wall))
    }
}

impl Outcome {
    /// Of everyone who took part. Printed at once.
    pub(crate) fn new(
        title: impl Into<String>,
        about: impl Into<String>,
        contenders: Vec<Standing>,
        bounded_by: impl Into<String>,
    ) -> Self {
        let (title, about, bounded_by) = (title.into(), about.into(), bounded_by.into());
        let outcome = Self { title, about, contenders, bounded_by };
        println!("{}", outcome.markdown());
        outcome
    }

    fn of(&self, role: Role) -> Option<&Standing> {
        self.contenders.iter().find(|standing| standing.role == role && !standing.runs.is_empty())
    }

    /// The fastest peer.
    pub(crate) fn best_peer(&self) -> Option<&Standing> {
        let peers = self
            .contenders
            .iter()
            .filter(|standing| standing.role == Role::Peer && !standing.runs.is_empty());
        peers.min_by(|one, other| one.median(|run| run.wall).total_cmp(&other.median(|run| run.wall)))
    }

    /// Whether weightd is not first, or not as near to the limit as it should be, in one of its ways.
    fn falls_short(&self) -> bool {
        let (peer, limit) = (self.best_peer(), self.of(Role::Limit));
        self.contenders.iter().filter(|own| own.role == Role::Own && !own.runs.is_empty()).any(|own| {
            peer.is_some_and(|peer| own.speed_relative_to(peer) < 1.0)
                || limit.is_some_and(|limit| own.speed_relative_to(limit) < ENOUGH)
        })
    }

    /// In words and as a table.
    pub(crate) fn markdown(&self) -> String {
        let (own, limit) = (self.of(Role::Own), self.of(Role::Limit));
        let mut table = Table::new(&[
            "what",
            "rounds",
            "wall s",
            "GB/s",
            "weightd's speed / its",
            "of the limit",
            "first tensor ms",
            "CPU s/GiB",
            "peak MiB",
            "bucket sent GB",
        ]);
        for standing in &self.contenders {
            table.push(standing.cells(own, limit));
        }
        let settings: Vec<String> = self
            .contenders
            .iter()
            .filter(|standing| !standing.settings.is_empty())
            .map(|standing| format!("- {}: {}", standing.name, standing.settings))
            .collect();
        let verdict = self.best_peer().map_or_else(String::new, |peer| {
            let own = self.contenders.iter().filter(|standing| standing.role == Role::Own);
            let lines = own.map(|own| {
                let times = own.speed_relative_to(peer);
                // Near to one, a digit more says which side of it.
                let digits = usize::from((0.9..1.1).contains(&times)) + 1;
                format!(
                    "{} is {times:.digits$} times as fast as the fastest peer, {}.\n\n",
                    own.name, peer.name
                )
            });
            lines.collect()
        });
        let shortfall = if self.falls_short() && !self.bounded_by.is_empty() {
            format!("What holds weightd back: {}\n\n", self.bounded_by)
        } else {
            String::new()
        };
        format!(
            "## {}\n\n{}\n\n{verdict}{shortfall}{}\n{}{}\n\n",
            self.title,
            self.about,
            table.markdown(),
            self.phases().map(|table| table + "\n").unwrap_or_default(),
            settings.join("\n")
        )
    }

    /// What parts runs had, as a table, where that is seen.
    fn phases(&self) -> Option<String> {
        let done = || self.contenders.iter().filter(|standing| !standing.runs.is_empty());
        let names = done().map(Standing::phases).find(|phases| !phases.is_empty())?;
        let head = ["seconds of it"].into_iter().chain(names.iter().map(|phase| phase.name));
        let mut table = Table::new(&head.collect::<Vec<_>>());
        for standing in done() {
            let seconds = standing.phases().into_iter().map(|phase| format!("{:.2}", phase.seconds));
            table.push([standing.name.clone()].into_iter().chain(seconds).collect());
        }
        Some(table.markdown())
    }
}

impl Standing {
    fn cells(&self, own: Option<&Self>, limit: Option<&Self>) -> Vec<String> {
        if let Some(failure) = &self.failure {
            // Programs in Python end with what was wrong, after how they came there; others begin with it.
            let lines = || failure.lines().filter(|line| !line.trim().is_empty());
            let line = lines().rfind(|line| line.contains("Error")).or_else(|| lines().next());
            let line = line.unwrap_or_default().replace('|', "/");
            return [self.name.as_str(), &format!("failed: {line}")]
                .into_iter()
                .chain([""; 8])
                .map(str::to_owned)
                .collect();
        }
        let shown = |number: Option<f64>, digits: usize| {
            number.map_or_else(|| "-".to_owned(), |number| format!("{number:.digits$}"))
        };
        let is_seen = |of: fn(&Run) -> bool| self.runs.iter().any(of);
        let first = || self.median(|run| run.first.unwrap_or(run.wall)) * 1e3;
        let peak = || self.median(|run| mebibytes(run.peak_bytes.unwrap_or_default()));
        let cpu = || self.median(|run| run.cpu) / gibibytes(self.bytes);
        vec![
            self.name.clone(),
            self.runs.len().to_string(),
            format!("{:.2}", self.median(|run| run.wall)),
            shown(self.speed(), 2),
            shown(own.map(|own| own.speed_relative_to(self)), 2),
            shown(limit.map(|limit| self.speed_relative_to(limit)), 2),
            shown(is_seen(|run| run.first.is_some()).then(first), 0),
            shown((self.bytes > 0).then(cpu), 2),
            shown(is_seen(|run| run.peak_bytes.is_some()).then(peak), 0),
            format!("{:.2}", self.median(|run| gigabytes(run.origin_bytes))),
        ]
    }
}
