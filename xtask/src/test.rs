//! `cargo xtask test`: all tests, and an honest count of them.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::Path,
    process::Stdio,
};

use anyhow::{Context, Result};

use crate::{command, skips, summary::Summary, tools};

/// What is built and tested.
const WORKSPACE: [&str; 3] = ["--workspace", "--features", "xtask/generate"];

/// Installs what tests need, runs them all and counts. Whether all is well. The programs that tests start are built by
/// the same `cargo test`, because their packages have integration tests of their own; building them first would compile their
/// dependencies twice, with other features.
pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<bool> {
    if let Err(error) = tools::install(root) {
        // Tests that need what is missing will say so; the others are worth running.
        eprintln!("warning: {error:#}; tests that need it will be skipped");
    }
    let log = root.join("target/skipped-tests");
    fs::write(&log, "").with_context(|| format!("emptying {}", log.display()))?;

    let mut summary = Summary::default();
    let finished = tests(root, arguments, &log, &mut summary)?;
    summary.skips(&fs::read_to_string(&log)?);
    if !finished && summary.failed == 0 {
        // A test program that does not build, or dies, reports no failure of its own.
        summary.failed = 1;
    }
    let refused = report(&summary);
    if refused > 0 {
        eprintln!("error: {refused} tests were skipped which must run in CI (see xtask/src/skips.rs)");
    }
    println!("{}", summary.totals());
    Ok(finished && summary.failed == 0 && refused == 0)
}

/// Runs `cargo test` once, shows what it says and counts. Whether it succeeded.
fn tests(root: &Path, arguments: &[String], log: &Path, summary: &mut Summary) -> Result<bool> {
    let mut cargo = command::cargo(root);
    cargo.args(["test", "--no-fail-fast"]).args(WORKSPACE).args(arguments);
    cargo.env("WEIGHTD_SKIP_LOG", log).stdout(Stdio::piped());
    let mut child = cargo.spawn().context("starting cargo test")?;
    let output = child.stdout.take().context("the output is piped")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        summary.line(&line);
    }
    Ok(child.wait()?.success())
}

/// Lists what was skipped, and returns how many of that CI refuses.
fn report(summary: &Summary) -> usize {
    let ci = env::var_os("CI").is_some_and(|value| value == "true");
    let mut refused = 0;
    for skip in &summary.skipped {
        match skips::allowed(skip) {
            Some(because) => println!("skipped {skip} (allowed: {because})"),
            None => {
                refused += usize::from(ci);
                println!("skipped {skip}");
            }
        }
    }
    refused
}
