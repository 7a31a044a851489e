//! A bucket server with a process of its own: see `BucketServer`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "its words are its job")]

use std::{env, process::ExitCode};

use anyhow::Result;
use rustix::process::{Signal, set_parent_process_death_signal};
use weightd_harness::{BucketOptions, BucketServer};

const USAGE: &str = "\
Usage: test-bucket [OPTION VALUE]...

Serves directories as Cloud Storage does, from memory, until whoever started it ends, or at SIGTERM. The first line that it
says is where.

  --place gs://BUCKET/PREFIX=DIRECTORY  read a directory in; any number of times
  --tls DIRECTORY                       speak TLS, by certificates that are made there; clients have to trust ca.pem
  --first-byte 50ms                     how long each answer is waited for
  --per-connection BYTES                how much goes out in a second by each connection
  --per-host BYTES                      the same by all of them together
  --listen ADDRESS                      listen on this address and not on 127.0.0.1
  --port NUMBER                         listen on this port
";

#[tokio::main]
async fn main() -> ExitCode {
    let options = match BucketOptions::from_arguments(env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprint!("error: {error:#}\n\n{USAGE}");
            return ExitCode::from(64);
        }
    };
    match serve(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(options: BucketOptions) -> Result<()> {
    // There is nothing to put in order at the end, so the kernel's own way with the signal will do.
    set_parent_process_death_signal(Some(Signal::TERM))?;
    let server = BucketServer::start_with(options).await?;
    println!("{}", server.endpoint());
    std::future::pending().await
}
