//! How a transfer goes, for a person: bars on a terminal, lines anywhere else.

mod bars;
mod lines;

use std::{io::IsTerminal, time::Duration};

use tokio::sync::watch;
use weightd_proto::v1;
use weightd_types::display_bytes;

pub(crate) use self::bars::AboveBars;
use self::{bars::Bars, lines::Lines};
use crate::output::Output;

/// How often work that says how it goes is looked at.
const TICK: Duration = Duration::from_millis(200);

/// Shows how a transfer goes.
pub(crate) struct Progress {
    style: Style,
}

enum Style {
    Bars(Bars),
    Lines(Lines),
}

impl Progress {
    /// Bars where they can be drawn, lines elsewhere.
    pub(crate) fn new() -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb" || term.is_empty());
        let style = if std::io::stderr().is_terminal() && !dumb {
            Style::Bars(Bars::new())
        } else {
            Style::Lines(Lines::default())
        };
        Self { style }
    }

    /// The source was resolved.
    pub(crate) fn resolved(&mut self, resolved: &v1::Resolved, output: &Output) {
        output.words(&opening(resolved));
        match &mut self.style {
            Style::Bars(bars) => bars.start(resolved.total_bytes),
            Style::Lines(_) => {}
        }
    }

    /// Bytes arrived.
    pub(crate) fn update(&mut self, update: &v1::Progress, output: &Output) {
        match &mut self.style {
            Style::Bars(bars) => bars.update(update),
            Style::Lines(lines) => lines.update(update).iter().for_each(|line| output.words(line)),
        }
    }

    /// Bytes were checked.
    pub(crate) fn checked(&mut self, done_bytes: u64, total_bytes: u64, output: &Output) {
        self.told(done_bytes, total_bytes, "checked", output);
    }

    /// So many bytes are `what` by now.
    pub(crate) fn told(&mut self, done_bytes: u64, total_bytes: u64, what: &str, output: &Output) {
        match &mut self.style {
            Style::Bars(bars) => bars.total(done_bytes, total_bytes, ""),
            Style::Lines(lines) => {
                lines.told(done_bytes, total_bytes, what).iter().for_each(|line| output.words(line));
            }
        }
    }

    /// Takes bars off the screen, so that what follows is printed where they were.
    pub(crate) fn clear(&mut self) {
        match &mut self.style {
            Style::Bars(bars) => bars.clear(),
            Style::Lines(_) => {}
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Shows how work goes that says so, until it is done. `what` is what becomes of bytes.
pub(crate) async fn watching<T, E>(
    mut seen: watch::Receiver<weightd_image::Progress>,
    what: &str,
    output: &Output,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let mut progress = Progress::new();
    let mut work = std::pin::pin!(work);
    let mut ticks = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            outcome = &mut work => {
                progress.clear();
                return outcome;
            }
            _ = ticks.tick() => {
                let weightd_image::Progress { done_bytes, total_bytes } = *seen.borrow_and_update();
                if total_bytes > 0 {
                    progress.told(done_bytes.min(total_bytes), total_bytes, what, output);
                }
            }
        }
    }
}

fn opening(resolved: &v1::Resolved) -> String {
    let (files, size) = (resolved.object_count, display_bytes(resolved.total_bytes));
    let missing = match resolved.missing_bytes {
        0 => "all here".to_owned(),
        bytes => format!("{} to fetch", display_bytes(bytes)),
    };
    format!("{}: {files} files, {size}, {missing}", resolved.source)
}

/// `1.20 GiB of 3.46 GiB, 812.00 MiB/s, 4 of 12 files complete, 3 s left`
fn totals(update: &v1::Progress) -> String {
    let mut text = format!("{} of {}", display_bytes(update.done_bytes), display_bytes(update.total_bytes));
    if update.rate_bytes > 0 {
        text += &format!(", {}/s", display_bytes(update.rate_bytes));
    }
    text += &format!(", {} of {} files complete", update.verified_files, update.total_files);
    let left = update.total_bytes.saturating_sub(update.done_bytes);
    if update.rate_bytes > 0 && left > 0 {
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let seconds = left as f64 / update.rate_bytes as f64;
        text += &format!(", {} left", crate::view::duration(seconds));
    }
    text
}
