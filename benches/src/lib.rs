//! What the benchmarks share: running a program and reading what it cost, medians, tables.

mod measure;
mod report;
mod system;

pub use measure::{Cost, Sample, binary, machine, run};
pub use report::{Row, Table, median};
pub use system::{busy, cores, cpu_of, forget_pages, peak_of, wait_until};
