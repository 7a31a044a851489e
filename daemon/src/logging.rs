//! Structured logs on stderr.

use std::io::{self, IsTerminal, Write};

use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// How a line looks.
    pub format: LogFormat,
    /// `info`, or directives such as `info,weightd_fetch=debug`.
    pub filter: String,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For a person.
    Text,
    /// One JSON object a line.
    Json,
}

/// Checks a filter.
///
/// # Errors
/// What is wrong with it.
pub fn check(filter: &str) -> Result<(), String> {
    EnvFilter::try_new(filter).map(drop).map_err(|error| error.to_string())
}

/// Sends what is logged in this process to stderr. Only the first call counts.
pub fn init(config: &LogConfig) {
    init_through(config, io::stderr);
}

/// As [`init`], through whatever `writer` makes for each line: for programs that draw on stderr as well.
pub fn init_through<W: Write + 'static>(config: &LogConfig, writer: impl Fn() -> W + Send + Sync + 'static) {
    let filter = EnvFilter::try_new(&config.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let registry = tracing_subscriber::registry().with(filter);
    // An error means that whoever embeds the program has logs of its own.
    let _ = match config.format {
        LogFormat::Text => registry.with(lines.with_ansi(may_colour())).try_init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    };
}

/// As <https://no-color.org> has it.
fn may_colour() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
