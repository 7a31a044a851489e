//! What the benchmarks share: running a program and reading what it cost, medians, tables.

#![allow(clippy::print_stderr, reason = "a benchmark reports to its terminal")]

mod bucket;
mod client;
mod gcsfuse;
mod measure;
mod node;
mod pages;
mod report;
mod system;
pub mod vllm;
mod watchdog;

pub use bucket::{BUCKET, Bucket, Common, SOURCE};
pub use client::{Client, Loaded, Python};
pub use gcsfuse::Gcsfuse;
pub use measure::{Cost, Sample, binary, machine, run};
pub use node::{Node, Process};
pub use pages::{Pages, fresh_memory};
pub use report::{Row, Table, gibibytes, gigabytes, mebibytes, median, percentile};
pub use system::{
    Memory, busy, cores, cpu_of, forget_pages, forget_pages_of, forget_peak_of, give_up_memory, hold_memory,
    memory_available, memory_of, peak_of, peak_together, take_memory, wait_until, written_by,
};
