//! `weightd`: the agent as a process of its own.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use weightd::{Agent, Config, Overrides};

/// What scripts get for a command line or configuration that makes no sense (`EX_USAGE`).
const USAGE: u8 = 64;

/// Keeps a verified store of model weights on this node, and fills it. Flags go before the configuration file.
#[derive(Debug, Parser)]
#[command(name = "weightd", version, max_term_width = 110)]
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
    let flags = match Flags::try_parse() {
        Ok(flags) => flags,
        Err(error) => {
            // A closed pipe is the reader's choice.
            let _ = error.print();
            return if error.use_stderr() { USAGE.into() } else { ExitCode::SUCCESS };
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
            USAGE.into()
        }
        Ok(_) if flags.check => ExitCode::SUCCESS,
        Ok(config) => run(config),
    }
}

fn run(config: Config) -> ExitCode {
    weightd::logging::init(&config.log);
    let outcome = tokio::runtime::Runtime::new()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(Box::pin(serve(config))));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Serves until a signal asks for the end.
async fn serve(config: Config) -> anyhow::Result<()> {
    let (socket, store) = (config.socket.clone(), config.store.directory.clone());
    // From here on, so that an agent that is told to end while it starts ends cleanly too.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
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
    Ok(listening?)
}

/// Words go to stderr; one that is closed changes nothing.
fn say(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
