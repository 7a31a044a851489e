//! Running the program.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
};

/// The program, with nothing of this test's surroundings that it would heed.
pub(crate) fn weightctl() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weightctl"));
    for variable in ["WEIGHTD_SOCKET", "WEIGHTD_STORE", "STORAGE_EMULATOR_HOST", "HF_ENDPOINT"] {
        command.env_remove(variable);
    }
    command.env("TZ", "UTC").stdin(Stdio::null());
    command
}

/// The program, asked of the agent at `socket`; options after `--` of a line are split at spaces.
pub(crate) fn ask(socket: &Path, line: &str) -> Ended {
    run(weightctl().arg("--socket").arg(socket).args(line.split(' ')))
}

/// What a run came to.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) data: String,
    pub(crate) words: String,
}

pub(crate) fn run(command: &mut Command) -> Ended {
    command.output().unwrap().into()
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), data: text(output.stdout), words: text(output.stderr) }
    }
}

impl Ended {
    /// Asserts success, and gives what was on stdout.
    #[track_caller]
    pub(crate) fn done(self) -> String {
        assert_eq!(self.code, Some(0), "{}", self.words);
        self.data
    }

    /// Asserts how it failed, and gives what was on stderr.
    #[track_caller]
    pub(crate) fn failed(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{}", self.words);
        assert_eq!(self.data, "", "a failure has no data");
        self.words
    }
}
