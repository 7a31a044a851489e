//! The programs as they are installed: `weightctl` and `weightd` as processes, against real servers and disks.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    reason = "a test may panic, sleep, and say why it is skipped"
)]

mod access;
mod crash;
mod csi;
mod daemon;
mod faults;
mod handoff;
mod images;
mod logs;
mod output;
mod place;
mod program;
mod scale;
mod scrub;
mod volumes;
mod wanted;
mod warm_up;
