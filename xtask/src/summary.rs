//! Counting tests over all of cargo's test programs.

/// What all test programs together said, and which tests said that they were skipped.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    /// `test: reason` each. Tests that skip themselves have passed as far as libtest knows.
    pub(crate) skipped: Vec<String>,
}

impl Summary {
    /// Takes in one line of a test program's output.
    pub(crate) fn line(&mut self, line: &str) {
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.passed += count(counts, "passed");
            self.failed += count(counts, "failed");
        } else if let Some((name, reason)) = ignored(line) {
            self.skipped.push(format!("{name}: {reason}"));
        }
    }

    /// Takes in what tests that skipped themselves have logged.
    pub(crate) fn skips(&mut self, log: &str) {
        let before = self.skipped.len();
        self.skipped.extend(log.lines().filter(|line| !line.is_empty()).map(str::to_owned));
        self.passed = self.passed.saturating_sub(self.skipped.len() - before);
    }

    /// The line that ends every run.
    pub(crate) fn totals(&self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped.len())
    }
}

/// The number before `word`, as in `ok. 3 passed; 0 failed`.
fn count(counts: &str, word: &str) -> usize {
    let mut before = "";
    for token in counts.split([' ', ';', '.']).filter(|token| !token.is_empty()) {
        if token == word {
            return before.parse().unwrap_or(0);
        }
        before = token;
    }
    0
}

/// Name and reason of a test that is marked `#[ignore]`.
fn ignored(line: &str) -> Option<(&str, &str)> {
    let (name, rest) = line.strip_prefix("test ")?.split_once(" ... ignored")?;
    Some((name, rest.strip_prefix(", ").unwrap_or("marked #[ignore]")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_summed_and_skipped_tests_have_not_passed() {
        let mut summary = Summary::default();
        for line in [
            "running 3 tests",
            "test a::b ... ok",
            "test slow ... ignored, needs a day",
            "test bare ... ignored",
            "test result: ok. 12 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.12s",
            "test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s",
        ] {
            summary.line(line);
        }
        summary.skips("azure: azurite-blob is not installed\n");
        assert_eq!(summary.totals(), "14 passed, 1 failed, 3 skipped");
        assert_eq!(summary.skipped[0], "slow: needs a day");
        assert_eq!(summary.skipped[1], "bare: marked #[ignore]");
    }
}
