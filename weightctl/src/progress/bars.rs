//! Progress as bars: the whole, and the few files that are moving.

use std::{
    collections::HashMap,
    io::{self, Write},
    sync::LazyLock,
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use weightd_proto::v1;

/// Files shown at once. A model may have 100,000; a screen has not.
const ACTIVE: usize = 8;

/// Redraws a second.
const REDRAWS: u8 = 10;

/// The one screen, which log lines and bars share.
static SCREEN: LazyLock<MultiProgress> =
    LazyLock::new(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(REDRAWS)));

/// Writes to stderr above the bars that are there, if any: a line in between would tear them.
pub(crate) struct AboveBars;

impl Write for AboveBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        SCREEN.suspend(|| io::stderr().lock().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}

/// The bars on the screen.
pub(crate) struct Bars {
    screen: MultiProgress,
    total: Option<ProgressBar>,
    files: HashMap<String, ProgressBar>,
}

impl Bars {
    pub(crate) fn new() -> Self {
        Self { screen: SCREEN.clone(), total: None, files: HashMap::new() }
    }

    /// Draws an empty bar for the whole.
    pub(crate) fn start(&mut self, total_bytes: u64) {
        self.total(0, total_bytes, "");
    }

    /// Moves the bars.
    pub(crate) fn update(&mut self, update: &v1::Progress) {
        for file in &update.files {
            self.file(file);
        }
        self.total(update.done_bytes, update.total_bytes, &super::totals(update));
    }

    /// Moves the bar of the whole.
    pub(crate) fn total(&mut self, done_bytes: u64, total_bytes: u64, words: &str) {
        let screen = &self.screen;
        let bar = self.total.get_or_insert_with(|| {
            screen.add(ProgressBar::new(total_bytes).with_style(style("{percent:>3}% {bar:24} {wide_msg}")))
        });
        bar.set_length(total_bytes);
        bar.set_position(done_bytes);
        bar.set_message(words.to_owned());
    }

    fn file(&mut self, file: &v1::FileProgress) {
        if file.verified {
            if let Some(bar) = self.files.remove(&file.path) {
                bar.finish_and_clear();
                self.screen.remove(&bar);
            }
        } else if let Some(bar) = self.files.get(&file.path) {
            bar.set_position(file.done_bytes);
        } else if self.files.len() < ACTIVE && file.done_bytes > 0 {
            let style = style("{percent:>3}% {bar:24} {wide_msg}");
            let bar = ProgressBar::new(file.total_bytes).with_style(style).with_message(file.path.clone());
            // The whole stays last, where the eye is.
            let bar = match &self.total {
                Some(total) => self.screen.insert_before(total, bar),
                None => self.screen.add(bar),
            };
            bar.set_position(file.done_bytes);
            self.files.insert(file.path.clone(), bar);
        }
    }

    /// Takes everything off the screen.
    pub(crate) fn clear(&mut self) {
        for (_, bar) in self.files.drain() {
            bar.finish_and_clear();
        }
        if let Some(total) = self.total.take() {
            total.finish_and_clear();
        }
    }
}

/// No colour: it would say nothing that the bar does not.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_few_of_many_files_get_a_bar() {
        let mut bars = Bars::new();
        bars.screen.set_draw_target(ProgressDrawTarget::hidden());
        let file = |number: u32, verified| v1::FileProgress {
            path: format!("{number}.safetensors"),
            done_bytes: 1,
            total_bytes: 2,
            verified,
        };
        let update = |files| v1::Progress { files, ..v1::Progress::default() };
        bars.update(&update((0..1000).map(|number| file(number, false)).collect()));
        assert_eq!(bars.files.len(), ACTIVE);
        bars.update(&update(vec![file(0, true), file(999, false)]));
        assert_eq!(bars.files.len(), ACTIVE);
        assert!(bars.files.contains_key("999.safetensors") && !bars.files.contains_key("0.safetensors"));
        bars.clear();
        assert!(bars.files.is_empty());
    }
}
