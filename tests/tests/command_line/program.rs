//! Running the programs.

use std::{
    ffi::OsStr,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use serde_json::Value;
use tokio::time::{Instant, sleep};
use weightd_harness::binary;

/// More than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(100);

/// A program with nothing of this test's surroundings that it would heed.
pub(crate) fn program(name: &str) -> Command {
    let mut command = Command::new(binary(name));
    let heeded = [
        "WEIGHTD_SOCKET",
        "WEIGHTD_STORE",
        "WEIGHTD_LOG",
        "NO_COLOR",
        "STORAGE_EMULATOR_HOST",
        "HF_ENDPOINT",
        "HF_TOKEN",
        "HF_HOME",
    ];
    heeded.iter().for_each(|variable| {
        command.env_remove(variable);
    });
    command.env("TZ", "UTC").stdin(Stdio::null());
    command
}

/// What a run came to.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) data: String,
    pub(crate) words: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), data: text(output.stdout), words: text(output.stderr) }
    }
}

impl Ended {
    pub(crate) fn of(command: &mut Command) -> Self {
        command.output().unwrap().into()
    }

    /// Asserts success, and gives what was on stdout.
    #[track_caller]
    pub(crate) fn done(self) -> String {
        assert_eq!(self.code, Some(0), "{}", self.words);
        self.data
    }

    /// Asserts success, and reads what was on stdout.
    #[track_caller]
    pub(crate) fn json(self) -> Value {
        serde_json::from_str(&self.done()).unwrap()
    }

    /// Asserts how it failed and that each of `told` was said, and gives what was on stderr.
    #[track_caller]
    pub(crate) fn failed(self, code: i32, told: &[&str]) -> String {
        assert_eq!(self.code, Some(code), "{}{}", self.data, self.words);
        assert!(!self.words.contains("panicked"), "{}", self.words);
        for words in told {
            assert!(self.words.contains(words), "{words:?} is not in:\n{}", self.words);
        }
        self.words
    }
}

/// A process that does not outlive the test.
#[derive(Debug)]
pub(crate) struct Running(pub(crate) Child);

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }

    /// SIGKILL; gives the exit code if it had ended before.
    pub(crate) fn kill(&mut self) -> Option<i32> {
        self.0.kill().unwrap();
        self.0.wait().unwrap().code()
    }

    /// Sends a signal by name.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").arg("-s").arg(name).arg(self.0.id().to_string()).status().unwrap();
        assert!(status.success());
    }

    /// Waits for the end, and gives the exit code.
    pub(crate) async fn ended(&mut self) -> Option<i32> {
        let status = until("the process ends", async || self.0.try_wait().unwrap()).await;
        status.code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Either fails only when the process is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asks again until there is an answer.
pub(crate) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(started.elapsed() < PATIENCE, "not in {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Runs a command on a terminal of its own, and gives all that it showed.
pub(crate) fn on_a_terminal(command: &Command) -> String {
    let typed = |word: &OsStr| format!("'{}'", word.to_str().unwrap());
    let line: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).map(typed).collect();
    let mut script = Command::new("script");
    script.args(["-qec", &line.join(" "), "/dev/null"]).env("TERM", "xterm").stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => script.env(name, value),
            None => script.env_remove(name),
        };
    }
    let output = script.output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A command line split at spaces.
pub(crate) fn words(line: &str) -> impl Iterator<Item = &OsStr> {
    line.split(' ').map(OsStr::new)
}
