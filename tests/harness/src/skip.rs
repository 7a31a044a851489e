//! Tests that cannot run here say so, and are counted.

use std::{
    env,
    fs::OpenOptions,
    io::{self, Write},
    thread,
};

/// The variable that names the file to which every skip is appended, one line each; `cargo xtask test` sets it.
const LOG: &str = "WEIGHTD_SKIP_LOG";

/// Says that the running test is skipped, and why.
///
/// The words go past libtest's capture, which would hide them because a skipped test counts as passed.
pub fn skip(reason: &str) {
    let thread = thread::current();
    let line = format!("{}: {}\n", thread.name().unwrap_or("unnamed test"), reason.replace('\n', " "));
    // Nothing can be done about a closed stderr, and a skip must not fail a test.
    let _ = io::stderr().write_all(format!("SKIP: {line}").as_bytes());
    if let Some(path) = env::var_os(LOG)
        && let Ok(mut log) = OpenOptions::new().append(true).create(true).open(path)
    {
        let _ = log.write_all(line.as_bytes());
    }
}

/// Says something past libtest's capture, as to whoever waits.
pub(crate) fn say(words: &str) {
    // Nothing can be done about a closed stderr.
    let _ = io::stderr().write_all(format!("{words}\n").as_bytes());
}

/// What a test returns; lets [`require!`](crate::require) leave any of them.
pub trait Outcome {
    /// The value of a test that had nothing to say.
    fn skipped() -> Self;
}

impl Outcome for () {
    fn skipped() -> Self {}
}

impl<E> Outcome for Result<(), E> {
    fn skipped() -> Self {
        Ok(())
    }
}

/// The started fixture; or leaves the test, skipped, when what it needs is not installed. A fixture that is there
/// and fails to start fails the test.
///
/// ```text
/// let gcs = require!(FakeGcs::start().await);
/// ```
#[macro_export]
macro_rules! require {
    ($fixture:expr) => {
        match $fixture {
            Ok(fixture) => fixture,
            Err(error @ ($crate::Unready::NotInstalled { .. } | $crate::Unready::NotAllowed { .. })) => {
                $crate::skip(&error.to_string());
                return $crate::Outcome::skipped();
            }
            Err(error) => panic!("{error}"),
        }
    };
}
