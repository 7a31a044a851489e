//! Medians and tables.

use std::{fmt::Write as _, time::Duration};

use crate::Sample;

/// The middle of some numbers (the mean of the two middle ones of an even count). 0 for none.
pub fn median(numbers: impl IntoIterator<Item = f64>) -> f64 {
    let mut numbers: Vec<f64> = numbers.into_iter().collect();
    numbers.sort_by(f64::total_cmp);
    match numbers.len() {
        0 => 0.0,
        len if len % 2 == 1 => numbers[len / 2],
        len => f64::midpoint(numbers[len / 2 - 1], numbers[len / 2]),
    }
}

/// The smallest of some numbers that a share of them, 0 to 1, does not exceed. 0 for none.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rank"
)]
pub fn percentile(numbers: impl IntoIterator<Item = f64>, share: f64) -> f64 {
    let mut numbers: Vec<f64> = numbers.into_iter().collect();
    numbers.sort_by(f64::total_cmp);
    let rank = (numbers.len() as f64 * share).ceil() as usize;
    numbers.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

/// For tables: 10^9 bytes.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

/// For tables: 2^30 bytes.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub fn gibibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// For tables: 2^20 bytes.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

impl Sample {
    /// Median wall time in seconds.
    pub fn wall(&self) -> f64 {
        median(self.costs.iter().map(|cost| cost.wall.as_secs_f64()))
    }

    /// Median processor time in seconds.
    pub fn cpu(&self) -> f64 {
        median(self.costs.iter().map(|cost| cost.cpu.as_secs_f64()))
    }

    /// Median peak memory in MiB.
    pub fn peak_mib(&self) -> f64 {
        median(self.costs.iter().map(|cost| mebibytes(cost.peak_bytes)))
    }

    /// Median of this sample's speed relative to another's, run by run: both ran in turn, so the ratio holds when the
    /// machine's speed drifts.
    pub fn speed_relative_to(&self, other: &Self) -> f64 {
        let ratio = |(own, other): (Duration, Duration)| other.as_secs_f64() / own.as_secs_f64();
        let pairs = self.costs.iter().zip(&other.costs).map(|(own, other)| (own.wall, other.wall));
        median(pairs.map(ratio))
    }
}

/// One line of a table.
#[derive(Debug, Clone)]
pub struct Row(pub Vec<String>);

/// A Markdown table.
#[derive(Debug, Clone)]
pub struct Table {
    head: Vec<String>,
    rows: Vec<Row>,
}

impl Table {
    /// A table with these columns.
    pub fn new(head: &[&str]) -> Self {
        Self { head: head.iter().map(ToString::to_string).collect(), rows: Vec::new() }
    }

    /// Adds a line.
    pub fn push(&mut self, cells: Vec<String>) {
        self.rows.push(Row(cells));
    }

    /// The table in Markdown.
    pub fn markdown(&self) -> String {
        let mut out = String::new();
        let line = |cells: &[String]| format!("| {} |", cells.join(" | "));
        let rule: Vec<String> = self.head.iter().map(|_| "---".to_owned()).collect();
        let _ = writeln!(out, "{}\n{}", line(&self.head), line(&rule));
        for Row(cells) in &self.rows {
            let _ = writeln!(out, "{}", line(cells));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median([]), 0.0);
    }

    #[test]
    fn tables_are_markdown() {
        let mut table = Table::new(&["a", "b"]);
        table.push(vec!["1".into(), "2".into()]);
        assert_eq!(table.markdown(), "| a | b |\n| --- | --- |\n| 1 | 2 |\n");
    }
}
