//! The one place that prints. Data goes to stdout, words go to stderr.
//!
//! A reader that closes the pipe (`weightctl ls | head -1`) is no error: the command ends quietly. Nobody reading
//! stderr is no error either.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use weightd_daemon::Exit;

use crate::{cli::Format, error::CommandError};

/// What can be shown both ways.
pub(crate) trait View: Serialize {
    /// For a person; without a newline at the end, and empty when there is nothing to show.
    fn table(&self) -> String;
}

/// Where a command prints.
#[derive(Debug)]
pub(crate) struct Output {
    format: Format,
}

impl Output {
    pub(crate) fn new(format: Format) -> Self {
        Self { format }
    }

    /// Prints data in the format asked for.
    pub(crate) fn show(&self, view: &impl View) -> Result<(), CommandError> {
        match self.format {
            Format::Table => match view.table() {
                table if table.is_empty() => Ok(()),
                table => self.data(&table),
            },
            Format::Json => self.json(view, serde_json::to_string_pretty),
        }
    }

    /// Prints one of a sequence: a line each in JSON, so that a reader can take them as they come.
    pub(crate) fn show_next(&self, view: &impl View) -> Result<(), CommandError> {
        match self.format {
            Format::Table if io::stdout().is_terminal() => {
                // Home, then clear: less flicker than the other way round.
                self.data(&format!("\x1b[H\x1b[2J{}", view.table()))
            }
            Format::Table => self.data(&format!("{}\n", view.table())),
            Format::Json => self.json(view, serde_json::to_string),
        }
    }

    fn json<T>(
        &self,
        value: &T,
        write: impl FnOnce(&T) -> serde_json::Result<String>,
    ) -> Result<(), CommandError> {
        let text = write(value).map_err(|error| written("stdout", error.into()))?;
        self.data(&text)
    }

    /// Prints a line of data.
    pub(crate) fn data(&self, text: &str) -> Result<(), CommandError> {
        self.raw(format!("{text}\n").as_bytes())
    }

    /// Prints bytes as they are.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Result<(), CommandError> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| written("stdout", error))
    }

    /// Prints a line for a person.
    pub(crate) fn words(&self, text: &str) {
        // Nothing can be done about a stderr that is gone, and the exit code still tells the outcome.
        let _ = writeln!(io::stderr().lock(), "{}", printable(text));
    }

    /// Prints why a command failed, and what to do about it.
    pub(crate) fn error(&self, error: &CommandError) {
        match error.exit() {
            Exit::Done => return,
            Exit::Interrupted | Exit::Terminated => self.words(&error.to_string()),
            _ => self.words(&format!("error: {error}")),
        }
        if let Some(hint) = error.hint() {
            self.words(&format!("hint: {hint}"));
        }
    }
}

/// The error of a failed write to `what`.
pub(crate) fn written(what: &str, cause: io::Error) -> CommandError {
    match cause.kind() {
        io::ErrorKind::BrokenPipe => CommandError::ClosedPipe,
        _ => CommandError::Write { what: what.to_owned(), cause },
    }
}

/// The text without what could steer a terminal: messages quote what origins answer.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_cannot_steer_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\nc"), "a\u{fffd}[2Jb\nc");
    }
}
