//! `weightd`: the agent as a process of its own.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use weightd::{Agent, Config, Overrides, StartError};
use weightd_daemon::{Exit, end_at_the_second, logging};

const AFTER_HELP: &str = "\
Exit codes: 0 ended by a signal, 64 usage, 65 corrupt data, 69 port or socket unavailable, 74 disk, 75 try again \
(another agent is at work), 77 not permitted, 130 and 143 ended at once by a second SIGINT or SIGTERM.";

/// Keeps a verified store of model weights on this node, and fills it. Flags go before the configuration file.
#[derive(Debug, Parser)]
#[command(name = "weightd", version, after_help = AFTER_HELP, max_term_width = 110)]
struct Flags {
    /// Configuration file; deploy/weightd.example.toml shows every setting.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of the store.
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Socket for clients [default: /run/weightd/weightd.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Where /metrics, /live and /ready are served, or "off" [default: 127.0.0.1:9464]
    #[arg(long, value_name = "ADDRESS")]
    metrics_address: Option<String>,
    /// text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// error, warn, info, debug, trace or off, also per module [default: info]
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
    /// Check the configuration, and end.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    begin().into()
}

fn begin() -> Exit {
    let flags = match Flags::try_parse() {
        Ok(flags) => flags,
        Err(error) => {
            // A closed pipe is the reader's choice.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Done };
        }
    };
    let overrides = Overrides {
        store: flags.store,
        socket: flags.socket,
        metrics_address: flags.metrics_address,
        log_format: flags.log_format,
        log: flags.log,
        ..Overrides::default()
    };
    match Config::load(flags.config.as_deref(), &overrides) {
        Err(error) => {
            say(&format!("error: {error}"));
            Exit::Usage
        }
        Ok(_) if flags.check => Exit::Done,
        Ok(config) => run(config),
    }
}

fn run(config: Config) -> Exit {
    logging::init(&config.log);
    let outcome = tokio::runtime::Runtime::new()
        .map_err(StartError::Process)
        .and_then(|runtime| runtime.block_on(Box::pin(serve(config))));
    match outcome {
        Ok(()) => Exit::Done,
        Err(error) => {
            say(&format!("error: {error}"));
            error.kind().into()
        }
    }
}

/// Serves until a signal asks for the end.
async fn serve(config: Config) -> Result<(), StartError> {
    let (socket, store) = (config.socket.clone(), config.store.directory.clone());
    end_at_the_second().map_err(StartError::Process)?;
    // From here on, so that an agent that is told to end while it starts ends cleanly too.
    let listen = |kind| signal(kind).map_err(StartError::Process);
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let mut agent = Box::pin(Agent::start(config)).await?;
    let listening = agent.listen().await;
    if listening.is_ok() {
        let version = env!("CARGO_PKG_VERSION");
        tracing::info!(socket = %socket.display(), store = %store.display(), version, "ready");
        let signal = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal, "ending: no new calls, transfers stop and resume at the next start");
    }
    agent.shutdown().await;
    listening
}

/// Words go to stderr; one that is closed changes nothing.
fn say(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
