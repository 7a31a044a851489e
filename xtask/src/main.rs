//! The task runner: `cargo xtask TASK`. Whatever CI does is a task here, and can be done by hand.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "its words are its job")]

mod bench;
mod cluster;
mod command;
mod demo;
#[cfg(feature = "generate")]
mod generate;
mod lint;
mod peers;
mod protocols;
mod skips;
mod summary;
mod test;
mod tools;
mod vllm;

use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
};

const USAGE: &str = "\
Usage: cargo xtask TASK

  demo                make a model, serve it from a GCS emulator, prefetch it, read a tensor back
  test [ARG...]       install what tests need, then run all tests; arguments go to `cargo test`
  lint                format, clippy, dependencies, generated code, length of files
  bench [NAME ARG...] run a benchmark (prefetch if none is named); arguments go to it
  generate [--check]  compile the protocols to the Rust that is committed, or say whether it is up to date
  cluster [COMMAND]   a real Kubernetes on this machine, by hand
  vllm [ARG...]       install vLLM (6 GB), and run it and transformers on volumes and their agent; arguments go to it
  tools               install what tests need into .tools
";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (task, rest) =
        arguments.split_first().map_or(("", [].as_slice()), |(task, rest)| (task.as_str(), rest));
    let root = root();
    let done = match task {
        "demo" => demo::run(&root),
        // It has said what failed, and the count must be the last line.
        "test" => match test::run(&root, rest) {
            Ok(true) => Ok(()),
            Ok(false) => return ExitCode::FAILURE,
            Err(error) => Err(error),
        },
        "lint" => lint::run(&root),
        "bench" => bench::run(&root, rest),
        "generate" => protocols::run(&root, rest),
        "cluster" => cluster::run(&root, rest),
        "vllm" => vllm::run(&root, rest),
        "tools" => tools::install(&root),
        "" | "help" | "--help" | "-h" => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        unknown => {
            eprintln!("error: no task is called {unknown}\n\n{USAGE}");
            return ExitCode::from(64);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The checkout.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}
