//! What the benchmarks share: running a program and reading what it cost, medians, tables.

mod measure;
mod report;

pub use measure::{Cost, Sample, machine, run};
pub use report::{Row, Table, median};
