//! Progress as lines, for logs and pipes: few enough to read.

use std::time::Duration;

use tokio::time::Instant;
use weightd_proto::v1;
use weightd_types::display_bytes;

use crate::view::percent;

/// Time between two lines about the whole.
const INTERVAL: Duration = Duration::from_secs(5);

/// Up to so many files, each gets a line when it is complete.
const FILES_WITH_LINES: u32 = 200;

/// What was said, to know what to say next.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    last: Option<Instant>,
}

impl Lines {
    /// The lines that an update is worth.
    pub(crate) fn update(&mut self, update: &v1::Progress) -> Vec<String> {
        let mut lines = Vec::new();
        if update.total_files <= FILES_WITH_LINES {
            let verified = update.files.iter().filter(|file| file.verified);
            lines.extend(
                verified.map(|file| format!("complete: {} ({})", file.path, display_bytes(file.total_bytes))),
            );
        }
        if self.is_due() {
            lines.push(format!(
                "{}: {}",
                percent(update.done_bytes, update.total_bytes),
                super::totals(update)
            ));
        }
        lines
    }

    /// The lines that progress is worth of which no more is known than how many bytes are `what`.
    pub(crate) fn told(&mut self, done_bytes: u64, total_bytes: u64, what: &str) -> Vec<String> {
        let line = || {
            let (done, total) = (display_bytes(done_bytes), display_bytes(total_bytes));
            format!("{}: {done} of {total} {what}", percent(done_bytes, total_bytes))
        };
        if self.is_due() { vec![line()] } else { Vec::new() }
    }

    /// Whether it is time for a line. Not at the first update: short transfers need none.
    fn is_due(&mut self) -> bool {
        let now = Instant::now();
        match self.last {
            Some(last) if now - last < INTERVAL => false,
            Some(_) => {
                self.last = Some(now);
                true
            }
            None => {
                self.last = Some(now);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(total_files: u32) -> v1::Progress {
        v1::Progress {
            files: vec![v1::FileProgress {
                path: "a.safetensors".to_owned(),
                done_bytes: 1 << 30,
                total_bytes: 1 << 30,
                verified: true,
            }],
            done_bytes: 1 << 30,
            total_bytes: 4 << 30,
            rate_bytes: 1 << 30,
            verified_files: 1,
            total_files,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_per_complete_file_and_one_every_few_seconds() {
        let mut lines = Lines::default();
        assert_eq!(lines.update(&update(4)), ["complete: a.safetensors (1.00 GiB)"]);
        tokio::time::advance(Duration::from_secs(6)).await;
        let said = lines.update(&update(4));
        assert_eq!(said.len(), 2);
        assert_eq!(said[1], "25%: 1.00 GiB of 4.00 GiB, 1.00 GiB/s, 1 of 4 files complete, 3 s left");
        assert_eq!(lines.update(&update(4)).len(), 1, "the next line about the whole waits");
    }

    #[tokio::test(start_paused = true)]
    async fn many_files_do_not_get_a_line_each() {
        assert!(Lines::default().update(&update(100_000)).is_empty());
    }
}
