//! `weightctl`: the command line of weightd.
//!
//! Data goes to stdout, words go to stderr. Commands speak gRPC to an agent: the one that listens on a socket, or
//! one inside this process (`--store`), which is the same code behind an in-memory pipe.

mod cli;
mod commands;
mod connection;
mod error;
mod output;
mod progress;
mod shell;
mod signals;
mod view;

use std::process::ExitCode;

use weightd_daemon::Exit;

use crate::{cli::Arguments, error::CommandError, output::Output};

fn main() -> ExitCode {
    let exit = match cli::parse(std::env::args_os()) {
        Ok(arguments) => run(arguments),
        Err(error) => cli::report(&error),
    };
    exit.into()
}

fn run(arguments: Arguments) -> Exit {
    let output = Output::new(arguments.format);
    let outcome = tokio::runtime::Runtime::new()
        .map_err(CommandError::Runtime)
        .and_then(|runtime| runtime.block_on(Box::pin(commands::run(arguments, &output))));
    match outcome {
        Ok(()) => Exit::Done,
        Err(error) => {
            output.error(&error);
            error.exit()
        }
    }
}
