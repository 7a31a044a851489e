//! The programs as they are installed: `weightctl` and `weightd` as processes, against real servers and disks.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod crash;
mod daemon;
mod disk;
mod faults;
mod place;
mod program;
mod wire;
