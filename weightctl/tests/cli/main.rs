//! The command line as its users run it: the real program, against a fake agent with canned answers where rendering
//! and exit codes are the subject, and with an agent in process where the work is.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod canned;
mod embedded;
mod exits;
mod program;
mod rendering;
